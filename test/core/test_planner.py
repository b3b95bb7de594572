"""The planner: plans, running requests, slots and when to plan again; see also test_planner_events."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import mixed_pool, planner_for, pool, random_pool
from sglang.srt.blend.core.order.plan import PlannerOptions
from sglang.srt.blend.core.pool.pending_index import NEVER
from sglang.srt.blend.core.pool.request_table import State
from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts
from sglang.srt.blend.core.step.dual_scan import Side
from sglang.srt.blend.core.step.step import Running, StepLimits

seeds = st.integers(0, 10**6)


# ------------------------------------------------------------------ plans


@given(seeds, st.integers(0, 80), st.sampled_from([0, 1, 7, 1000]), st.booleans(), st.integers(1, 5000))
def test_plan_is_a_permutation_of_the_pool(seed, n, window, known, capacity):
    planner = planner_for(
        random_pool(seed, n, known=known), kv_capacity=capacity, window=window, sample_fraction=0.1
    )
    plan = planner.plan()
    assert sorted(plan.slots.tolist()) == list(range(n))
    assert len(plan.sides) == len(plan.steps) == n
    assert plan.shared_tokens >= 0.99 * plan.possible_tokens


@given(seeds, st.integers(1, 60))
def test_equal_seeds_give_equal_plans(seed, n):
    first, second = (planner_for(random_pool(seed, n, known=False), seed=seed).plan() for _ in range(2))
    for name in ("slots", "sides", "steps"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


def test_a_prefix_that_takes_much_of_the_cache_is_not_cut():
    """Documents of 1,000 tokens: cut, they would be in the cache twice, which is little of a large one."""
    prompts = [[1_000 + d] * 1_000 + [q] for d in range(10) for q in range(60)]
    output = [10 if q % 2 else 400 for d in range(10) for q in range(60)]
    plans = [planner_for(pool(prompts, output), kv_capacity=tokens).plan() for tokens in (63_999, 64_000)]
    assert plans[0].splits == 0 < plans[1].splits
    assert plans[0].shared_tokens == plans[0].possible_tokens == plans[1].possible_tokens


@pytest.mark.parametrize(
    "prompts", [[], [[]], [[1, 2]], [[], [], []], [[5, 5]] * 7, [[1], [1, 2], [1, 2, 3], [1, 2, 3]]]
)
def test_degenerate_pools_are_planned(prompts):
    planner = planner_for(pool(prompts, 3), kv_capacity=8)
    assert sorted(planner.plan().slots.tolist()) == list(range(len(prompts)))
    assert sorted(drain(planner)) == list(range(len(prompts)))


def drain(planner):
    """Admit everything as proposed, each request running alone at worst; slots in order."""
    admitted, running = [], []
    while True:
        if planner.stale:
            planner.replan()
        proposed = planner.propose(4)
        if not proposed and not running:
            return admitted
        for slot in proposed:
            planner.admit(slot)
            running.append(slot)
        admitted += proposed
        if not proposed:
            planner.remove(running.pop(0))


@given(seeds, st.integers(0, 60), st.integers(1, 3000))
def test_driving_the_planner_admits_everyone_once(seed, n, capacity):
    planner = planner_for(random_pool(seed, n, known=False), kv_capacity=capacity, sample_fraction=0.05)
    assert sorted(drain(planner)) == list(range(n))


@given(seeds, st.integers(1, 60), st.integers(1, 3000), st.integers(-1, 20))
def test_propose_changes_nothing(seed, n, capacity, limit):
    planner = planner_for(random_pool(seed, n, known=False), kv_capacity=capacity)
    planner.replan()
    first = planner.propose(limit)
    assert first == planner.propose(limit)
    assert len(first) == len(set(first)) <= max(limit, 0)


def test_samples_run_first():
    planner = planner_for(pool([[i, i] for i in range(200)], 50, known=False), sample_fraction=0.05)
    planner.replan()
    samples = planner.propose(10)
    for slot in samples:
        planner.admit(slot)
    assert not set(planner.propose(190)) & set(samples)
    again = planner_for(pool([[i, i] for i in range(200)], 50, known=False), sample_fraction=0.05, seed=1)
    again.replan()
    assert set(again.propose(10)) != set(samples)


def test_answers_of_samples_reach_their_subtree():
    prompts = [[1, 1, i] for i in range(50)] + [[2, 2, i] for i in range(50)]
    planner = planner_for(pool(prompts, 9, known=False, max_new=4000), sample_fraction=0.02)
    planner.replan()
    for slot, answer in ((0, 3), (50, 3000)):
        planner.admit(slot)
        planner.observe(slot, answer)
        planner.remove(slot)
    planner.replan()
    (short,) = {planner.table.expected(slot) for slot in range(1, 50)}
    (long,) = {planner.table.expected(slot) for slot in range(51, 100)}
    assert short < long / 2


def test_new_large_subtree_is_sampled_however_many_answers_are_in():
    planner = planner_for(pool([[1, i] for i in range(50)], 9, known=False, max_new=50), sample_fraction=0.1)
    planner.replan()
    for slot in range(50):
        planner.admit(slot)
        planner.observe(slot, 9)
        planner.remove(slot)
    slots = pool([[2, i] for i in range(20)], 9, known=False, max_new=50).add_to(planner)
    planner.replan()
    first = planner.propose(1)
    assert first[0] in slots
    assert sum(planner.table.sampled[slots]) >= 1


def test_windows_are_drained_in_order_of_arrival():
    planner = planner_for(random_pool(3, 30), window=10)
    assert (planner.plan().slots // 10).tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert [slot // 10 for slot in drain(planner)] == [0] * 10 + [1] * 10 + [2] * 10


def test_estimates_never_exceed_max_new_tokens():
    planner = planner_for()
    planner.add(
        np.arange(6, dtype=np.int32),
        np.array([0, 2, 4, 6]),
        max_new_tokens=np.array([5, 5, 100], np.int32),
        known_output=np.array([9, 0, 0], np.int32),
    )
    for _ in range(2):
        first, second, third = (planner.table.expected(s) for s in range(3))
        assert (first, second <= 5, third <= 100) == (5, True, True)
        planner.replan()


# ------------------------------------------------------------------ running requests


def one_of_each():
    """A planner with a compute-intensive slot 0 and a memory-intensive slot 1, both running, and others."""
    prompts = [[1] * 900, [2] * 10] + [[3 + i] * 400 for i in range(20)]
    planner = planner_for(
        pool(prompts, 1, known=False, max_new=20_000), kv_capacity=10**6, sample_fraction=0.0
    )
    planner.table.estimate[:] = [10, 10_000] + [300] * 20
    answers = SortedPrompts.of(np.arange(100), np.arange(101))
    planner.table.lengths.learn(
        answers, lengths=[1] * 100, tokens=[10] * 100, ended=[True] * 100, cap=[20_000] * 100, hint=[0] * 100
    )
    planner.refresh()
    planner.ledger.scanner.load(planner._plans._order(planner._plans._planned()).scan)
    planner.admit(0)
    planner.admit(1)
    return planner


def test_only_answers_of_unknown_length_end_at_several_times():
    planner = planner_for(kv_capacity=10_000)
    caps, known = np.array([1000, 1, 1000]), np.array([0, 0, 1000])
    slots = planner.add(
        np.arange(30, dtype=np.int32), np.array([0, 10, 20, 30]), max_new_tokens=caps, known_output=known
    )
    open_end, capped, fixed = planner.table.ends(slots, 4).tolist()
    assert 0 < open_end[0] < open_end[1] < open_end[2] < open_end[3] <= 1000
    assert (capped, fixed) == ([1] * 4, [1000] * 4)


def test_a_retracted_request_is_planned_with_the_work_that_it_still_is():
    """It prefills what it had generated, and has less to decode: denser than one that begins."""
    planner = planner_for(kv_capacity=10_000)
    slots = planner.add(
        np.arange(40, dtype=np.int32),
        np.array([0, 20, 40]),
        max_new_tokens=np.array([500, 500]),
        known_output=np.array([500, 500]),
    )
    back, fresh = slots.tolist()
    planner.admit(back)
    planner.ledger.progress(np.array([back]), np.array([400]))
    planner.retract(back)
    assert planner.table.waiting_rows == 420 + 100 + 20 + 500
    planner.replan()
    assert planner.table.waiting_rows == 420 + 100 + 20 + 500
    assert planner.order.tolist() == [back, fresh]
    assert planner._plans.window.scan.output.tolist() == [100, 500]
    assert planner._plans.window.scan.new_tokens.tolist() == [420, 20]


def test_a_request_admitted_unasked_goes_to_the_side_of_its_density():
    planner = one_of_each()
    assert (planner.ledger.side(0), planner.ledger.side(1)) == (Side.COMPUTE, Side.MEMORY)


def test_a_request_that_outlives_its_estimate_a_little_keeps_its_side():
    planner = one_of_each()
    planner.ledger.progress(np.array([0]), np.array([12]))
    assert planner.ledger.side(0) == Side.COMPUTE
    assert 12 < planner.table.expected(0) < 300


def test_a_request_that_outlives_its_estimate_by_far_moves_to_the_memory_side():
    planner = one_of_each()
    before = planner.state.used
    planner.ledger.progress(np.array([0]), np.array([5000]))
    assert planner.ledger.side(0) == Side.MEMORY
    assert planner.state.used.compute == 0.0
    assert planner.state.used.memory > before.memory


def test_a_request_that_ends_early_frees_its_share():
    planner = one_of_each()
    planner.observe(1, 2)
    planner.remove(1)
    assert planner.state.used.memory == 0.0


def test_leaving_twice_is_refused():
    planner = planner_for(pool([[1], [2]]))
    planner.remove(0)
    with pytest.raises(KeyError, match="request slot 0 is not waiting or running"):
        planner.remove(0)
    with pytest.raises(KeyError, match="request slot 0 is not waiting"):
        planner.admit(0)
    with pytest.raises(KeyError, match="request slot 1 is not running"):
        planner.retract(1)


# ------------------------------------------------------------------ reuse of slots


def test_a_reused_slot_inherits_nothing():
    planner = planner_for(pool([[1, i] for i in range(8)], 5), sample_fraction=1.0)
    planner.replan()
    planner.remove(3)
    planner.refresh()
    (slot,) = pool([[9, 9, 9]], 700).add_to(planner)
    planner.refresh()
    assert slot == 3
    assert slot not in planner.order
    lo, hi = planner.ledger.index.narrow(*planner.ledger.index.root(0), 0, np.array([9]))
    assert planner.ledger.index.totals(lo, hi).next_use == NEVER - 1
    planner.admit(slot)
    planner.retract(slot)
    assert slot not in planner.propose(8)  # until it is planned
    planner.replan()
    assert slot in planner.propose(8)


def test_an_aborted_sample_leaves_no_trace_in_the_next_request_of_its_slot():
    planner = planner_for(pool([[1, i] for i in range(8)], 5, known=False), sample_fraction=1.0)
    planner.replan()
    planner.remove(0)
    planner.refresh()
    (slot,) = pool([[9]], 5, known=False).add_to(planner)
    planner.replan()
    proposed = planner.propose(100)
    assert slot == 0
    assert len(proposed) == len(set(proposed)) == 8


def test_arrivals_aborted_before_they_are_sorted_are_forgotten():
    planner = planner_for(pool([[1, i] for i in range(4)], 5))
    for slot in (2, 0):
        planner.remove(slot)
    planner.replan()
    assert sorted(planner.order.tolist()) == [1, 3]
    assert sorted(pool([[7], [8]]).add_to(planner).tolist()) == [0, 2]
    assert sorted(planner.plan().slots.tolist()) == [0, 1, 2, 3]


def test_a_server_that_never_needs_a_plan_does_not_grow():
    """Online use: everyone fits, so nobody asks for a plan."""
    planner = planner_for(memory=16)
    prompts = pool([[i, i + 1, i + 2] for i in range(40)], 5)
    for _ in range(200):
        for slot in prompts.add_to(planner).tolist():
            planner.admit(slot)
            planner.observe(slot, 5)
            planner.remove(slot)
    assert planner.table.store.num_slots < 5000
    assert len(planner.pool.prompts) < 5000


# ------------------------------------------------------------------ what is left, and when to plan


def test_steps_left_are_those_of_the_longest_that_still_waits():
    planner = planner_for(pool([[i] for i in range(4)], [9, 7, 7, 3]))
    planner.replan()
    nobody = planner.ledger.progress_of(np.zeros(0, np.int64))
    longest = [planner.ledger.work_left(nobody).longest]
    for slot in range(4):
        planner.admit(slot)
        longest.append(planner.ledger.work_left(nobody).longest)
    assert longest == [9, 7, 7, 3, 0]
    planner.ledger.progress(np.array([1, 3]), np.array([2, 1]))
    for slot, left in ((3, 2), (1, 5)):
        planner.retract(slot)
        assert planner.ledger.work_left(nobody).longest == left
    pool([[9], [8]], [5, 4]).add_to(planner)
    planner.remove(1)
    assert planner.ledger.work_left(nobody).longest == 5


def test_nobody_waits_for_a_running_answer_whose_length_is_a_guess():
    """Its expectation grows with it, and answers that begin later would end later in turn."""
    planner = planner_for(pool([[1], [2], [3]], 9, known=False, max_new=50_000), kv_capacity=10**6)
    planner.replan()
    planner.admit(0)
    planner.ledger.progress(np.array([0]), np.array([20_000]))
    running = planner.ledger.progress_of(np.array([0]))
    waiting = planner.table.estimate[1:3].max()
    assert planner.ledger.work_left(running).longest == waiting < running.remaining[0]


def test_a_shared_prefix_is_held_once_and_read_by_all_who_share_it():
    planner = planner_for(pool([[7] * 99 + [i] for i in range(10)], 20))
    planner.replan()

    def left():
        running = np.flatnonzero(planner.table.state == State.RUNNING)
        return planner.ledger.work_left(planner.ledger.progress_of(running))

    own = 20 * (1 + 21 / 2)  # a prompt's last token and the answer, once for each token of the answer
    for _ in ("waiting", "running"):
        assert left().kv_reads == 10 * (20 * 99 + own)
        assert left().kv_held == 20 * 99 + 10 * own
        assert left().full_steps(1000) == pytest.approx((20 * 99 + 10 * own) / 700)
        for slot in planner.propose(10):
            planner.admit(slot, planner.table.shared.item(slot))


def test_stale_counts_arrivals_and_answers():
    planner = planner_for(replan_interval=2)
    assert not planner.stale
    pool([[i] for i in range(200)], 5).add_to(planner)
    assert planner.stale
    planner.replan()
    assert not planner.stale
    for slot in range(10):
        planner.admit(slot)
        planner.observe(slot, 5)
        planner.remove(slot)
        assert planner.stale == (slot >= 8)  # 191 wait: a twentieth
    planner.replan()
    pool([[1], [2]], 5).add_to(planner)
    assert not planner.stale
    pool([[3], [4]], 5).add_to(planner)
    assert planner.stale


def test_a_small_pool_is_planned_again_when_its_samples_have_answered():
    planner = planner_for(
        pool([[i] for i in range(100)], 500, known=False), sample_fraction=0.03, replan_interval=10**6
    )
    planner.replan()
    samples = planner.propose(4)
    for slot in samples:
        assert not planner.stale
        planner.admit(slot)
        planner.observe(slot, 7)
        planner.remove(slot)
    assert planner.stale
    planner.replan()
    assert not planner.stale
    assert all(planner.table.expected(slot) < 20 for slot in planner.order.tolist())


def test_what_runs_is_looked_at_again_though_nobody_ends():
    planner = planner_for(
        pool([[i] for i in range(300)], 500, known=False, max_new=5000),
        kv_capacity=10_000,
        replan_interval=10**6,
    )
    running, plans = [], [0]
    for step in range(1, 400):
        holders = Running(np.array(running, np.int64), np.full(len(running), step - 1))
        begun = planner.begin_step(holders, 10 * step * len(running), StepLimits())
        if step == 1:
            for slot in begun.proposals[:5]:
                planner.admit(slot)
                running.append(slot)
        if planner.replans > len(plans) - 1:
            plans.append(planner.table.estimate.item(299))
    assert 5 < planner.replans < 15
    assert plans[-1] > plans[1]


def test_fits_entirely_counts_waiting_and_running():
    planner = planner_for(pool([[1] * 6, [2] * 6], 4), kv_capacity=20)
    assert planner.ledger.fits_entirely()
    planner.admit(0)
    assert planner.ledger.fits_entirely()
    pool([[]], 1).add_to(planner)
    assert not planner.ledger.fits_entirely()


def test_steady_admissions_hold_the_roots_density():
    """Requests in the air, weighted by their share of the time, have the density of the whole pool.

    With room for hundreds of requests: a share smaller than one request cannot be kept.
    """
    requests = mixed_pool(5, 6000)
    planner = planner_for(requests, kv_capacity=200_000)
    plan = planner.plan()
    scan, output = planner._plans.window.scan, requests.output[plan.slots]
    comp, mem = (seconds[np.argsort(scan.slots)][plan.slots] for seconds in (scan.comp, scan.mem))
    begin, end = plan.steps[-1] * 0.2, plan.steps[-1] * 0.8
    overlap = np.minimum(plan.steps + output, end) - np.maximum(plan.steps, begin)
    part = np.clip(overlap / output, 0.0, 1.0)
    assert (part * comp).sum() / (part * mem).sum() == pytest.approx(plan.density, rel=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_fraction": 1.5}, "sample_fraction must be between 0 and 1, got 1.5"),
        ({"sharing_budget": -1}, "sharing_budget must be between 0 and 1, got -1"),
        ({"replan_interval": 0}, "replan_interval must be at least 1, got 0"),
        ({"window": -1}, "window and memory must not be negative"),
        ({"patience": -0.5}, "patience must not be negative, got -0.5"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PlannerOptions(**options)
    with pytest.raises(ValueError, match="kv_capacity must be positive, got 0"):
        planner_for(kv_capacity=0)

"""One prefill step, request by request: each verdict, each reason, and what one step leaves to the next."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import pool, random_pool
from sglang.srt.blend.core.pool.request_table import RequestTable, State
from sglang.srt.blend.core.step.look_ahead import LATE_STEPS
from sglang.srt.blend.core.step.step import MAX_PASSED_OVER, Running, StepLimits
from sglang.srt.blend.core.step.step_memory import RETRACTED, StepMemory
from sglang.srt.blend.core.step.verdict import Reason, Verdict
from steps import admit, begin, consider, outcome, planner_of


def long_and_short():
    """Two long answers of which one fits beside the other, and short ones; slot 0 runs."""
    prompts = [[1] * 40, [2] * 40, *([i] * 150 for i in range(3, 30))]
    planner = planner_of(pool(prompts, [900, 900] + [4] * 27))
    admit(begin(planner), planner, 0)
    return planner


# ---------------------------------------------------------------- verdicts and reasons


def test_an_idle_engine_admits_whatever_comes_first():
    planner = planner_of(pool([[1] * 5000, [2] * 5000], 10))
    step = begin(planner)
    assert outcome(consider(step, planner, step.proposals[0])) == (Verdict.ADMIT, Reason.NOTHING_RUNS)


def test_with_nobody_proposed_and_nothing_running_the_first_in_the_queue_goes():
    planner = planner_of(pool([[1] * 500] * 4, 10))
    begin(planner)  # plans
    step = begin(planner, max_proposals=0)
    assert step.proposals == [0]


def test_a_request_whose_future_fits_is_admitted():
    planner = planner_of(pool([[i] * 100 for i in range(8)], 100), kv_capacity=1000)
    admit(begin(planner), planner, 0)
    step = begin(planner)
    slot = step.proposals[0]
    assert outcome(consider(step, planner, slot)) == (Verdict.ADMIT, Reason.FITS)


def test_a_request_whose_future_does_not_fit_fills_its_side_and_the_other_side_goes_on(nobody_preemptible):
    """The long answer would exceed the capacity at its end; the short one behind it does not."""
    planner = planner_of(pool([[1] * 400, [2] * 10, [3] * 100, [4] * 100], [4, 700, 4, 700]), kv_capacity=900)
    admit(begin(planner), planner, 1)
    step = begin(planner)
    assert outcome(consider(step, planner, 3)) == (Verdict.SIDE_FULL, Reason.NO_ROOM)
    step.propose([3, 2])
    assert outcome(consider(step, planner, 2)) == (Verdict.ADMIT, Reason.FITS)


def test_a_side_that_was_found_full_waits_until_somebody_leaves(nobody_preemptible):
    planner = planner_of(pool([[1] * 10, [2] * 10, [3] * 10, [4] * 300], [700, 700, 700, 4]), kv_capacity=900)
    admit(begin(planner), planner, 0)
    step = begin(planner, max_proposals=0)
    step.propose([1, 2])
    assert outcome(consider(step, planner, 1)) == (Verdict.SIDE_FULL, Reason.NO_ROOM)
    assert outcome(consider(step, planner, 2)) == (Verdict.DEFER, Reason.SIDE_WAITS)
    later = begin(planner)
    assert set(later.proposals).isdisjoint({1, 2})
    planner.observe(0, 700)
    planner.remove(0)
    assert {1, 2} & set(begin(planner).proposals)


def test_when_neither_side_has_room_the_step_ends(nobody_preemptible):
    planner = planner_of(pool([[1] * 995, [2] * 300, [3] * 10], [4, 4, 700]), kv_capacity=1000)
    admit(begin(planner), planner, 0)
    step = begin(planner, max_proposals=0)
    step.propose([1, 2])
    assert consider(step, planner, 1).verdict is Verdict.SIDE_FULL
    assert outcome(consider(step, planner, 2)) == (Verdict.ENOUGH, Reason.NO_ROOM)


def test_whoever_was_not_proposed_ends_the_step():
    planner = planner_of(pool([[i] * 300 for i in range(9)], 100), kv_capacity=1000)
    admit(begin(planner), planner, 0)
    step = begin(planner, max_proposals=0)
    step.propose([1])
    assert outcome(consider(step, planner, 2)) == (Verdict.ENOUGH, Reason.NOT_PROPOSED)


def test_everyone_is_considered_when_everything_fits():
    planner = planner_of(pool([[i] * 5 for i in range(9)], 5), kv_capacity=1000)
    step = begin(planner)
    assert step.everything_fits
    for slot in range(9):
        admit(step, planner, slot)


def test_a_request_waits_while_another_computes_its_prefix():
    planner = planner_of(pool([[1] * 200 + [i] for i in range(9)], 200), kv_capacity=2000)
    step = begin(planner)
    first, second = step.proposals[:2]
    admit(step, planner, first)
    assert outcome(consider(step, planner, second)) == (Verdict.DEFER, Reason.SHARED_PREFIX)
    assert step.consider(second, 150).reason is Reason.SHARED_PREFIX  # of which something is cached by now
    assert step.consider(second, 1).reason is not Reason.SHARED_PREFIX
    assert consider(step, planner, second, shares=False).reason is not Reason.SHARED_PREFIX
    step = begin(planner)
    cached = step.consider(second, 1, unheld_tokens=0)
    assert outcome(cached) == (Verdict.ADMIT, Reason.FITS)


def test_a_few_tokens_are_waited_for_by_as_many_as_make_them_dear():
    """On an A100, Llama-3-8B's weights are read in the time that 153 tokens take to compute."""

    def reasons(count):
        prompts = [[1] * 20 + [i + 2] * 10 for i in range(count)]
        planner = planner_of(pool(prompts, 200), kv_capacity=3000)
        step = begin(planner)
        step.propose(range(count))
        admit(step, planner, 0)
        return {consider(step, planner, slot).reason for slot in range(1, count)}

    assert reasons(8) == {Reason.FITS}  # seven times twenty
    assert reasons(9) == {Reason.SHARED_PREFIX}


def test_a_prompt_that_continues_computes_its_prefix_for_others():
    planner = planner_of(pool([[1] * 200 + [i] for i in range(9)], 200), kv_capacity=2000)
    admit(begin(planner), planner, 0)
    step = begin(planner)
    slot = step.proposals[0]
    assert consider(step, planner, slot).reason is not Reason.SHARED_PREFIX
    step.lead(0)
    step.continued(100, 50)
    decision = consider(step, planner, slot)
    assert decision.reason is Reason.SHARED_PREFIX


def test_no_more_than_so_many_requests_are_passed_over():
    planner = planner_of(pool([[1] * 40 + [i] for i in range(60)], 300), kv_capacity=4000)
    admit(begin(planner), planner, 0)
    step = begin(planner, max_proposals=0)
    step.propose(range(1, 60))
    step.lead(0)
    outcomes = [outcome(consider(step, planner, slot)) for slot in range(1, MAX_PASSED_OVER + 1)]
    assert set(outcomes[:-1]) == {(Verdict.DEFER, Reason.SHARED_PREFIX)}
    assert outcomes[-1] == (Verdict.ENOUGH, Reason.SHARED_PREFIX)


def test_engines_with_budgets_of_their_own_decide_about_memory():
    planner = planner_of(pool([[i] * 100 for i in range(9)], 5000), kv_capacity=1000)
    admit(begin(planner), planner, 0)
    step = begin(planner, max_proposals=0, forecasts=False)
    step.propose([1])
    assert outcome(consider(step, planner, 1)) == (Verdict.ADMIT, Reason.NOT_FORECAST)


def test_where_nobody_may_be_passed_over_the_first_that_does_not_fit_ends_the_step(nobody_preemptible):
    planner = planner_of(pool([[i] * 100 for i in range(9)], 800), kv_capacity=1000)
    admit(begin(planner), planner, 0)
    step = begin(planner, max_proposals=0, may_defer=False)
    step.propose([1])
    assert outcome(consider(step, planner, 1)) == (Verdict.ENOUGH, Reason.NO_ROOM)


def test_a_request_that_the_engine_cannot_allocate_fills_its_side():
    prompts = [[0] * 100, [1] * 200, [2] * 200, *([i] * 10 for i in range(3, 9))]
    planner = planner_of(pool(prompts, [800, 4, 4] + [700] * 6), kv_capacity=2000)
    admit(begin(planner), planner, 0)
    step = begin(planner, max_proposals=0)
    step.propose([1, 2])
    decision = consider(step, planner, 1)
    assert decision.admits
    assert outcome(step.refused(decision)) == (Verdict.SIDE_FULL, Reason.ENGINE_REFUSED)
    assert outcome(consider(step, planner, 2)) == (Verdict.DEFER, Reason.SIDE_WAITS)


def test_a_long_answer_begins_preemptibly_where_few_rows_share_a_step():
    planner = planner_of(
        pool([[1] * 40, [2] * 40, *([i] * 150 for i in range(3, 30))], [900, 900] + [4] * 27)
    )
    admit(begin(planner), planner, 0)
    step = begin(planner, max_proposals=0)
    step.propose([1])
    decision = consider(step, planner, 1)
    assert outcome(decision) == (Verdict.ADMIT_PREEMPTIBLE, Reason.WORTH_PREEMPTION)
    step.admitted(decision, prefill_tokens=40, shared_tokens=0)
    assert planner.table.preemptible[1]
    planner.give_back(1)
    assert not planner.table.preemptible[1]


def test_no_request_is_preemptible_on_an_engine_that_hides_its_fixed_time():
    planner = planner_of(
        pool([[1] * 40, [2] * 40, *([i] * 150 for i in range(3, 30))], [900, 900] + [4] * 27),
        paced="overlapped",
    )
    admit(begin(planner), planner, 0)
    step = begin(planner, max_proposals=0)
    step.propose([1])
    assert consider(step, planner, 1).verdict is Verdict.SIDE_FULL


def test_a_preemptible_request_for_which_there_is_room_after_all_is_kept():
    planner = planner_of(
        pool([[1] * 40, [2] * 40, *([i] * 150 for i in range(3, 30))], [900, 900] + [4] * 27)
    )
    admit(begin(planner), planner, 0)
    step = begin(planner, max_proposals=0)
    step.propose([1])
    step.admitted(consider(step, planner, 1), prefill_tokens=40, shared_tokens=0)
    planner.observe(0, 900)
    planner.remove(0)
    step = begin(planner, max_proposals=0)
    step.propose([2])
    consider(step, planner, 2)
    assert not planner.table.preemptible[1]


# ---------------------------------------------------------------- the quota


def paced_planner(tokens=200):
    """Short answers to prompts of so many tokens, with a quota, and long ones to hide behind; slot 0 runs."""
    prompts = [[1] * 10, *([1] + [i] * (tokens - 1) for i in range(2, 200)), [300] * 10]
    planner = planner_of(pool(prompts, [3000] + [4] * 198 + [3000]), kv_capacity=8000, paced="mixed")
    admit(begin(planner), planner, 0)
    return planner


def test_a_paced_request_may_prefill_what_is_left_of_the_quota():
    planner = paced_planner()
    step = begin(planner)
    assert step.paced
    step.propose([1, 2])
    decision = consider(step, planner, 1)
    quota = decision.prefill_tokens
    assert decision.admits
    assert quota > 1
    step.admitted(decision, prefill_tokens=quota - 1, shared_tokens=0)
    assert consider(step, planner, 2).prefill_tokens == 1


def test_a_spent_quota_defers_the_compute_side():
    planner = paced_planner()
    step = begin(planner)
    dense = [slot for slot in step.proposals if slot not in (0, 199)]
    step.continued(0, 10**6)  # somebody else's prompt has used it up
    assert outcome(consider(step, planner, dense[0])) == (Verdict.DEFER, Reason.QUOTA_SPENT)


def test_a_single_shared_token_is_waited_for_while_somebody_takes_the_place():
    planner = paced_planner(tokens=20)
    step = begin(planner)
    dense = [slot for slot in step.proposals if slot not in (0, 199)]
    assert consider(step, planner, dense[0]).reason is not Reason.SHARED_PREFIX
    step.lead(0)  # begins with a 1, too
    reasons = [consider(step, planner, slot).reason for slot in dense]
    waiting = reasons.count(Reason.SHARED_PREFIX)
    assert (
        reasons[:waiting] == [Reason.SHARED_PREFIX] * waiting
    )  # until all that is proposed beyond the quota
    assert 0 < waiting < len(dense)


def test_a_chunk_is_no_larger_than_quota_free_memory_and_whole_pages():
    planner = paced_planner()
    step = begin(planner, page_size=16)
    assert step.chunk_tokens(None, 100) == 96
    assert step.chunk_tokens(None, 15) == 0
    assert step.chunk_tokens(None, -3) == 0
    dense = next(slot for slot in step.proposals if slot not in (0, 199))
    admit(step, planner, dense)
    step = begin(planner, page_size=16)
    step.continued(0, 10**6)
    assert step.chunk_tokens(dense, 100) == 0
    assert step.chunk_tokens(0, 100) == 96  # the memory side has no quota


def test_a_prompt_that_runs_alone_goes_on_though_its_quota_is_less_than_a_page():
    planner = paced_planner()
    step = begin(planner)
    dense = next(slot for slot in step.proposals if slot not in (0, 199))
    admit(step, planner, dense)
    page = 10**6
    assert begin(planner, page_size=page).chunk_tokens(dense, page) == 0
    planner.remove(0)
    step = begin(planner, page_size=page)
    assert step.paced
    assert step.chunk_tokens(dense, page) == page


# ---------------------------------------------------------------- memory


def test_what_the_cache_serves_is_counted():
    planner = planner_of(pool([[i] * 100 for i in range(2)]))
    step = begin(planner)
    for slot, new in ((0, 100), (1, 30)):
        step.admitted(step.consider(slot, new), prefill_tokens=new, shared_tokens=0)
    assert planner.ledger.cached_tokens == 70


def test_what_is_admitted_in_a_step_counts_for_the_next_request_of_it(nobody_preemptible):
    planner = planner_of(pool([[i] * 100 for i in range(12)], 100), kv_capacity=1000)
    step = begin(planner, max_proposals=0)
    step.propose(range(12))
    admitted = 0
    for slot in range(12):
        decision = consider(step, planner, slot)
        if not decision.admits:
            break
        step.admitted(decision, prefill_tokens=100, shared_tokens=0)
        admitted += 1
    assert 100 * admitted + (100 + LATE_STEPS) * admitted <= 1000 + 200
    assert 2 <= admitted < 6


def test_cached_tokens_that_nobody_holds_count_when_a_request_holds_them(nobody_preemptible):
    planner = planner_of(pool([[i] * 100 for i in range(6)], 100), kv_capacity=420)
    admit(begin(planner), planner, 0)
    step = begin(planner, max_proposals=0)
    step.propose([1, 2])
    assert step.consider(1, 10, unheld_tokens=90).reason is Reason.FITS
    step = begin(planner, max_proposals=0)
    step.propose([1, 2])
    assert not step.consider(1, 10, unheld_tokens=330).admits


def test_after_a_preemption_the_room_is_measured_again(nobody_preemptible):
    planner = planner_of(pool([[i] * 100 for i in range(9)], 100), kv_capacity=520)
    first = begin(planner)
    first.propose([0, 1])
    admit(first, planner, 0)
    admit(first, planner, 1)
    step = begin(planner, max_proposals=0)
    step.propose([2])
    assert not consider(step, planner, 2).admits
    planner.retract(1)
    step.preempted([0], used_tokens=100)
    step.propose([2])
    assert consider(step, planner, 2).admits


def test_partly_filled_pages_take_room(nobody_preemptible):
    planner = planner_of(pool([[i] * 100 for i in range(9)], 100), kv_capacity=420)
    admit(begin(planner), planner, 0)
    fits = [
        consider(_proposing(begin(planner, page_size=size), 1), planner, 1).reason is Reason.FITS
        for size in (1, 64)
    ]
    assert fits == [True, False]


def _proposing(step, *slots):
    step.propose(slots)
    return step


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize(
    ("prompt", "chunk", "reason"),
    [(800, 816, Reason.FITS), (800, 64, Reason.NO_ROOM), (600, 64, Reason.FITS)],
)
def test_a_prompt_in_chunks_leaves_everybody_who_runs_room_to_end(page_size, prompt, chunk, reason):
    """It cannot be retracted: beside it, an answer must fit at its cap. One prefilled at once can."""
    planner = planner_of(pool([[1] * 10, [2] * prompt, [3] * 5], [8, 4, 500]), kv_capacity=1008)
    planner.table.max_new[0] = 300  # it is expected to end long before
    admit(begin(planner), planner, 0)
    step = begin(planner, max_proposals=0, page_size=page_size)
    step.propose([1])
    assert step.consider(1, prompt, chunk_tokens=chunk).reason is reason


# ---------------------------------------------------------------- everything together


def test_reasons_are_counted_for_those_who_ask_why_requests_wait():
    planner = planner_of(pool([[i] * 100 for i in range(9)], 5000), kv_capacity=1000)
    admit(begin(planner), planner, 0)
    step = begin(planner, max_proposals=0)
    step.propose([1, 2])
    consider(step, planner, 1)
    consider(step, planner, 2)
    consider(step, planner, 3)
    reasons = planner.state.reasons
    assert reasons["nothing_runs"] == 1
    assert reasons["not_proposed"] == 1
    assert sum(reasons.values()) == 4
    assert set(reasons) == {reason.value for reason in Reason}


def test_a_reason_either_admits_or_keeps_waiting():
    admitting = {Reason.FITS, Reason.NOTHING_RUNS, Reason.NOT_FORECAST, Reason.WORTH_PREEMPTION}
    assert {reason for reason in Reason if not reason.waits} == admitting


@given(st.integers(0, 10**6), st.sampled_from(["", "mixed", "pdmux", "overlapped"]), st.integers(60, 4000))
def test_steps_empty_every_pool_within_its_capacity_and_their_books_stay_right(seed, paced, capacity):
    """Admit as the steps say, decode a token a turn, retract when memory runs out, as an engine would."""
    rng = np.random.default_rng(seed)
    requests = random_pool(seed, 30, stretch=4, known=bool(rng.integers(2)))
    requests = type(requests)(
        requests.prompts,
        np.minimum(requests.output, 40),
        requests.known,
        np.minimum(requests.max_new, 60),
        requests.namespace,
    )
    planner = planner_of(requests, kv_capacity=max(capacity, 110), paced=paced)
    table, output = planner.table, requests.output
    order, ended = [], set()
    for _ in range(20_000):
        if len(ended) == len(requests):
            break
        running = Running(np.array(order, np.int64), table.generated[np.array(order, np.int64)])
        used = int((table.store.length[running.slots] + running.generated).sum())
        waiting = np.flatnonzero(table.state == State.WAITING)
        step = planner.begin_step(
            running, used, StepLimits(), first=int(waiting[0]) if len(waiting) else None
        )
        for slot in waiting.tolist() if step.everything_fits else step.proposals:
            new = int(table.store.length[slot] + table.generated[slot])
            decision = step.consider(slot, new)
            if decision.verdict is Verdict.ENOUGH:
                break
            if decision.admits:
                if used + new > planner.kv_capacity:
                    if step.refused(decision).verdict is Verdict.ENOUGH:
                        break
                    continue
                step.admitted(decision, prefill_tokens=new, shared_tokens=0)
                order.append(slot)
                used += new
        while used + len(order) > planner.kv_capacity and len(order) > 1:
            back = next((s for s in reversed(order) if table.preemptible[s]), order[-1])
            order.remove(back)
            used -= int(table.store.length[back] + table.generated[back])
            planner.retract(back)
        planner.ledger.progress(np.array(order, np.int64), table.generated[np.array(order, np.int64)] + 1)
        for slot in [s for s in order if table.generated[s] >= output[s]]:
            order.remove(slot)
            ended.add(slot)
            planner.observe(slot, int(output[slot]))
            planner.remove(slot)
        planner.ledger._check()
    assert len(ended) == len(requests)


WITHOUT_SGLANG = """
import sys, types
from pathlib import Path
for name in ("sglang", "sglang.srt"):  # the checkout's own folders alone, none of upstream's modules
    package = types.ModuleType(name)
    package.__path__ = [str(Path("python", *name.split(".")).resolve())]
    sys.modules[name] = package
for name in ("torch", "transformers", "sglang.srt.managers", "sglang.srt.server_args"):
    sys.modules[name] = None
import pytest
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "test/core/step"]))
"""


def test_a_step_is_decided_without_sglang():
    """The whole folder again, in a process that has neither SGLang nor torch."""
    if "torch" in sys.modules and sys.modules["torch"] is None:
        pytest.skip("this is that process")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SGLANG],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert " 1 skipped" in done.stdout


def test_preemptible_requests_of_unknown_length_are_as_few_as_retractions_allow():
    memory = StepMemory(RequestTable())
    assert memory.may_preempt(0)
    assert not memory.may_preempt(1)
    for slot in range(RETRACTED):
        memory.admitted(slot)
    assert memory.may_preempt(1)
    memory.retractions = 2
    assert not memory.may_preempt(0)

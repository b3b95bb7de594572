"""Prefill passes of their own wait until missing rows have wasted as much as a pass."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import pool
from sglang.srt.blend.core.pool.request_table import RequestTable
from sglang.srt.blend.core.step.gathering import Gathering
from sglang.srt.blend.core.step.look_ahead import FEW
from sglang.srt.blend.core.step.step_memory import StepMemory
from sglang.srt.blend.core.step.verdict import Decision, Reason
from steps import admit, begin, consider, planner_of


def full(*, kv_capacity=6000, common=0, paced="", **options):
    """A planner of 80 alike requests of which as many run as fit, and how many that are.

    Slots 0 and 1 have `common` more tokens in common; the second one waits while the first computes them.
    """
    prompts = [[99] * common * (i < 2) + [i] * 100 for i in range(80)]
    planner = planner_of(pool(prompts, 100), kv_capacity=kv_capacity, paced=paced, **options)
    step = begin(planner, max_proposals=0)
    step.propose(range(80))
    for slot in range(80):
        decision = consider(step, planner, slot)
        if decision.reason is Reason.SHARED_PREFIX:
            continue
        if not decision.admits:
            break
        admit(step, planner, slot)
    assert planner.table.num_running < 60
    return planner, planner.table.num_running


def one_ends(planner, slot):
    planner.observe(slot, 100)
    planner.remove(slot)


def steps_until_somebody_is_proposed(planner, at_most=100):
    return next(steps for steps in range(1, at_most) if begin(planner).proposals)


@pytest.mark.parametrize("ended", [1, 2, 4])
def test_as_many_rows_are_missed_as_a_pass_is_worth(ended, nobody_preemptible):
    """Of n rows one is missing for n steps, two for half as many: that wastes what a pass reads."""
    planner, n = full()
    assert begin(planner).proposals == []
    for slot in range(ended):
        one_ends(planner, slot)
    assert steps_until_somebody_is_proposed(planner) == -(-n // ended)


def test_whoever_fits_begins_until_nobody_more_does(nobody_preemptible):
    """A pass that pays is filled: the step after it goes on, unless somebody was refused."""
    planner, n = full()
    for slot in range(4):
        one_ends(planner, slot)
    steps_until_somebody_is_proposed(planner)
    step = begin(planner)
    for slot in step.proposals[:2]:
        admit(step, planner, slot)
    step = begin(planner)
    slots = step.proposals
    assert slots, "two more fit"
    for slot in slots:
        if consider(step, planner, slot).admits:
            admit(step, planner, slot)
    assert planner.table.num_running == n
    one_ends(planner, slots[0])
    assert begin(planner).proposals == []


@pytest.mark.parametrize(
    ("reasons", "goes_on"),
    [
        ((Reason.NO_ROOM, Reason.FITS), True),  # the engine's limits have ended the step
        ((Reason.FITS, Reason.NO_ROOM), False),
        ((Reason.NO_ROOM, Reason.SIDE_WAITS), False),
        ((Reason.FITS, Reason.ENGINE_REFUSED), False),
        ((Reason.NO_ROOM, Reason.SHARED_PREFIX), True),  # who waits for a prefix may fit when it is there
        ((Reason.NO_ROOM, Reason.NOT_PROPOSED), False),  # which says nothing about room
    ],
)
def test_nobody_more_fits_if_the_last_one_that_was_proposed_found_no_room(reasons, goes_on):
    memory = StepMemory(RequestTable())
    for reason in reasons:
        memory.noted(Decision(slot=0, new_tokens=1, unheld_tokens=0, shares=True, reason=reason))
    assert memory.worth_a_pass(2 * FEW, [1]) is goes_on


def test_among_few_nobody_waits_for_company(nobody_preemptible):
    planner, n = full(kv_capacity=2000)
    assert n <= FEW
    one_ends(planner, 0)
    assert begin(planner).proposals


@pytest.mark.parametrize(("common", "waits"), [(90, True), (100, False)])
def test_readers_of_a_long_prefix_do_not_wait(common, waits, nobody_preemptible):
    """One part in 64 of the cache is long: it may have left the cache when whoever computed it has ended."""
    planner, _ = full(common=common)
    one_ends(planner, 2)
    assert 1 in planner.order, "a reader that waits"
    assert (begin(planner).proposals == []) is waits


@pytest.mark.parametrize("engine", ["mixed", "overlapped"])
def test_where_prefill_runs_beside_decode_nobody_waits(engine, nobody_preemptible):
    planner, _ = full(paced=engine)
    one_ends(planner, 0)
    assert begin(planner).proposals


def test_a_new_plan_is_followed_at_once(nobody_preemptible):
    planner, _ = full()
    one_ends(planner, 0)
    assert begin(planner).proposals == []
    planner.replan()
    assert begin(planner).proposals


def test_whoever_has_waited_too_long_does_not_wait_for_company(nobody_preemptible):
    planner, _ = full(patience=0.1)
    one_ends(planner, 0)
    step = begin(planner)
    assert step.proposals == planner._steps._patience.due(planner._steps.memory.admissions) != []


def test_an_order_of_somebody_else_does_not_wait_for_company(nobody_preemptible):
    planner, n = full()
    one_ends(planner, 0)
    assert begin(planner).proposals == []
    assert begin(planner, choose=lambda limit, due: [n + 1]).proposals == [n + 1]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=200))
def test_no_more_is_wasted_than_a_pass_and_a_step(running):
    """Whatever ends and retracts: until a step pays, missing rows have wasted less than a pass reads."""
    gathering = Gathering()
    assert gathering.pays(running=0, begun=0, full=False)
    missing = most = 0
    for n in running:
        most = max(most, n)
        missing += most - n
        assert gathering.pays(running=n, begun=0, full=True) is (missing >= most)

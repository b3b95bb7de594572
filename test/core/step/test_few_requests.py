"""A cache that holds few requests at a time: what sides and quotas mean there."""

import numpy as np
import pytest

from pools import pool
from sglang.srt.blend.core.step.dual_scan import Side
from sglang.srt.blend.core.step.forecast import PARTS
from sglang.srt.blend.core.step.room import Holders, Room
from sglang.srt.blend.core.step.verdict import Reason, Verdict
from steps import admit, begin, consider, outcome, planner_of


def leader_and_follower(*, answers):
    """Slot 0 has begun, 1 has the same prompt, 2 does not fit beside it; all three are the memory side's."""
    prompts = [[1] * 50, [1] * 50, [2] * 1500, *([i] * 900 for i in range(3, 9))]
    planner = planner_of(pool(prompts, [answers, answers, 300, *[4] * 6]), kv_capacity=2000)
    step = begin(planner)
    step.propose([0, 1, 2])
    admit(step, planner, 0)
    return planner, step


def test_whoever_waits_for_a_prefix_is_not_behind_those_that_fill_the_side_meanwhile(nobody_preemptible):
    planner, step = leader_and_follower(answers=600)
    assert outcome(consider(step, planner, 1)) == (Verdict.DEFER, Reason.SHARED_PREFIX)
    assert consider(step, planner, 2).reason is Reason.NO_ROOM
    assert planner.ledger.side(2) is Side.MEMORY
    later = begin(planner)
    assert 1 in later.proposals
    assert outcome(later.consider(1, 1)) == (Verdict.ADMIT, Reason.FITS)


def test_once_it_was_refused_itself_it_waits_with_its_side(nobody_preemptible):
    planner, step = leader_and_follower(answers=1000)
    for slot in (1, 2):
        consider(step, planner, slot)
    assert begin(planner).consider(1, 1).reason is Reason.NO_ROOM
    assert 1 not in begin(planner).proposals


@pytest.mark.parametrize(("compute_need", "n", "fits"), [(500, 1, False), (600, 1, True), (600, 2, False)])
def test_a_share_that_the_compute_side_cannot_use_is_none(compute_need, n, fits):
    """One runs that comes to hold 450 of 1,000 tokens, or two, of which one is the compute side's."""
    remaining, held = np.full(n, 50), np.full(n, 400 // n)
    ends = np.repeat(remaining, PARTS).reshape(-1, PARTS)
    memory_side = np.arange(n) == 0
    room = Room(
        Holders(np.arange(n), remaining, ends, held, memory_side, np.zeros(n, np.bool_)),
        used=400,
        ahead=0,
        deviations=0.0,
        reserve=700,
        compute_need=compute_need,
        outlasting=1000.0,
        capacity=1000,
        page_size=1,
    )
    assert room.fits(Side.MEMORY, 100, 50) is fits


def test_no_more_is_kept_for_the_compute_side_than_there_is_of_it():
    """An even pace among the one step that is left for it would be all of its work at once, in each step."""
    planner = planner_of(pool([[1] * 90, [2] * 90, [3] * 100], [30, 33, 30]), kv_capacity=1000, paced="mixed")
    admit(begin(planner), planner, 0)
    step = begin(planner, max_proposals=0)
    step.propose([1])
    assert planner.ledger.side(1) is Side.MEMORY
    work = planner.ledger.work_left(step._running())
    assert work.compute_reserve(1000, used=1000.0) > 900, "at an even pace"
    assert outcome(consider(step, planner, 1)) == (Verdict.ADMIT, Reason.FITS)
    assert step._room._reserve <= 90 + 100 + 2 * 30


def test_a_prompt_that_may_not_go_in_chunks_goes_whole_rather_than_not_at_all():
    """Cut at the quota, it might leave the one who runs no room to end; a step could take it whole."""
    planner = planner_of(pool([[1] * 300, [2] * 600], [40, 9]), kv_capacity=1000, paced="mixed")
    planner.table.max_new[0] = 250
    admit(begin(planner), planner, 0)
    step = begin(planner, max_proposals=0)
    step.propose([1])
    assert planner.ledger.side(1) is Side.COMPUTE
    assert 0 < step._quota < 600
    decision = consider(step, planner, 1)
    assert (*outcome(decision), decision.prefill_tokens) == (Verdict.ADMIT, Reason.FITS, None)
    assert step.consider(1, 600, chunk_tokens=500).reason is Reason.NO_ROOM

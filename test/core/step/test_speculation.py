"""What changes where a decoding step yields several tokens, and that nothing does where it yields one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import LLAMA_3_8B
from pools import planner_for, pool
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.pool.request_table import State
from sglang.srt.blend.core.step.dual_scan import Side
from sglang.srt.blend.core.step.forecast import PARTS
from sglang.srt.blend.core.step.look_ahead import LATE_STEPS
from sglang.srt.blend.core.step.outlook import PoolClock, WorkDone
from sglang.srt.blend.core.step.pacing import Pacer
from sglang.srt.blend.core.step.room import Holders, Room
from sglang.srt.blend.core.step.speculation import Speculation
from sglang.srt.blend.core.step.step import Running, StepLimits
from sglang.srt.blend.core.step.verdict import Reason

A100 = StepTimeModel(ModelShape.from_config(LLAMA_3_8B), load_hardware("a100-80gb"))
CPU = StepTimeModel(A100.shape, load_hardware("cpu"))  # no tiles


def yielding(accept_length, draft_tokens=1, ahead=0):
    """Speculation that has seen so many tokens a step for long."""
    speculation = Speculation(draft_tokens, ahead)
    for _ in range(100):
        speculation.observe(1000 * accept_length, 1000)
    return speculation


def with_speculation(planner, speculation):
    planner.speculation = planner.ledger.speculation = speculation
    return planner


# ---------------------------------------------------------------- the number


def test_the_accept_length_follows_what_was_seen_last():
    speculation = Speculation(draft_tokens=4, ahead=8)
    assert speculation.accept_length == 1
    for length in (3, 2, 4):
        for _ in range(60):
            speculation.observe(1000 * length, 1000)
        assert speculation.accept_length == pytest.approx(length, rel=0.01)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 3)), max_size=50))
def test_the_accept_length_stays_within_what_was_seen(seen):
    speculation = Speculation(draft_tokens=4, ahead=8)
    for verifications, drafts in seen:
        speculation.observe(verifications * (1 + drafts), verifications)
        assert 1 <= speculation.accept_length <= 4


@given(st.integers(0, 10**6))
def test_without_speculation_steps_rows_and_tokens_are_the_same_number(count):
    alone = Speculation()
    assert alone.steps(count) == alone.rows(count) == alone.tokens(count) == count


# ---------------------------------------------------------------- KV


def stepped_peak(used, running, accept_length, ahead):
    """Highest use while each of (remaining, held) gets so many tokens a step, and is seen to end late."""
    running = [[left, held + ahead, LATE_STEPS] for left, held in running]
    used += ahead * len(running)
    peak = used
    while running:
        for request in running:
            if request[0] <= 0:
                request[2] -= 1
            got = min(max(request[0], 0), accept_length)
            request[0] -= got
            request[1] += got
            used += got
        peak = max(peak, used)
        used -= sum(held for left, held, late in running if left <= 0 and late == 0)
        running = [request for request in running if request[0] > 0 or request[2] > 0]
    return peak


def smallest_capacity(running, new, remaining, speculation):
    """KV tokens with which one more request fits beside those that run."""
    left, held = (np.array([r[i] for r in running], np.int64) for i in range(2))
    nobody, late = np.zeros(len(running), np.bool_), speculation.tokens(LATE_STEPS)
    ends = np.repeat(left + late, PARTS).reshape(-1, PARTS)
    holders = Holders(np.arange(len(running)), left + late, ends, held, nobody, nobody)
    for capacity in range(10_000):
        room = Room(
            holders,
            used=int((held + speculation.ahead).sum()),
            ahead=speculation.ahead,
            deviations=0.0,
            reserve=0,
            compute_need=0,
            outlasting=0.0,
            capacity=capacity,
            page_size=1,
        )
        if room.fits(Side.COMPUTE, new, remaining + late):
            return capacity
    raise AssertionError("nothing fits")


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), max_size=6),
    st.integers(1, 20),
    st.integers(0, 20),
    st.integers(1, 4),
    st.integers(0, 8),
)
def test_who_fits_stays_within_capacity_whatever_a_step_yields(running, remaining, new, accept, ahead):
    """Stepping through the future needs no more than the forecast says, and not much less."""
    speculation = yielding(accept, accept, ahead)
    capacity = smallest_capacity(running, new, remaining, speculation)
    until_its_end = [(min(left, remaining), held) for left, held in running]
    used = new + sum(held for _, held in running)
    peak = stepped_peak(used, [*until_its_end, (remaining, new)], accept, ahead)
    assert peak <= capacity
    # Each is taken to grow until it is seen to have ended, the last step counted whole.
    assert capacity <= peak + (len(running) + 1) * (LATE_STEPS + 1) * accept


def test_what_requests_hold_ahead_is_not_given_twice():
    """Two answers that would just fit do not where each holds some KV beyond them."""
    for ahead, fits in ((0, True), (8, False)):
        planner = planner_for(pool([[1] * 100, [2] * 100], [50, 50]), kv_capacity=310, sample_fraction=0.0)
        with_speculation(planner, Speculation(draft_tokens=4, ahead=ahead))
        planner.admit(0)
        running = Running(np.array([0]), np.array([1]))
        step = planner.begin_step(running, 101 + ahead, StepLimits(), first=1)
        decision = step.consider(1, 100)
        assert (decision.reason is Reason.FITS) is fits


def test_a_pool_that_fits_without_its_drafts_alone_does_not_fit_entirely():
    for ahead, fits in ((0, True), (8, False)):
        planner = planner_for(pool([[1] * 100, [2] * 100], [50, 50]), kv_capacity=310, sample_fraction=0.0)
        with_speculation(planner, Speculation(draft_tokens=4, ahead=ahead))
        assert planner.ledger.fits_entirely() is fits
        planner.admit(0)
        assert planner.ledger.fits_entirely() is fits


# ---------------------------------------------------------------- pacing


def work_left(speculation, *, outputs=(400, 100)):
    planner = planner_for(pool([[i] * 500 for i in range(40)], [*outputs] * 20), kv_capacity=10**7)
    with_speculation(planner, speculation).replan()
    return planner.ledger.work_left(planner.ledger.progress_of(np.zeros(0, np.int64)))


@pytest.mark.parametrize("accept_length", [2, 4])
def test_the_same_prefill_is_spread_over_fewer_steps(accept_length):
    one, several = work_left(Speculation()), work_left(yielding(accept_length, draft_tokens=accept_length))
    assert several.rows == pytest.approx(one.rows, rel=0.01)  # each verified row yields a token here
    assert several.steps(10**7) == pytest.approx(one.steps(10**7) / accept_length, rel=0.01)
    quota = [
        Pacer(CPU, "mixed", kv_capacity=10**7).quota(left, decode_rows=0, kv_tokens=0.0)
        for left in (one, several)
    ]
    assert quota[1].tokens == pytest.approx(quota[0].tokens * accept_length, rel=0.05)
    assert quota[1].late == pytest.approx(quota[0].late, rel=0.01)  # output tokens, whatever a step yields


def test_rejected_drafts_are_rows_all_the_same():
    one, half = work_left(Speculation()), work_left(yielding(2, draft_tokens=4))
    prefill = 40 * 500
    assert half.rows - prefill == pytest.approx(2 * (one.rows - prefill), rel=0.01)


def test_the_density_of_the_work_does_not_depend_on_what_a_step_yields():
    """It is compared with densities of requests, which are of whole answers."""
    assert work_left(yielding(3, draft_tokens=4)).density == work_left(Speculation()).density


def test_output_counted_in_the_table_is_that_of_who_waits():
    planner = planner_for(pool([[i] * 50 for i in range(8)], list(range(10, 18))), kv_capacity=10**6)
    table = planner.table
    for slot in (3, 5):
        planner.admit(slot)
    planner.retract(5, generated=4)
    waiting = np.flatnonzero(table.state == State.WAITING)
    assert table.waiting_output == table.work(waiting)[1].sum()
    assert table.num_running == 1


# ---------------------------------------------------------------- outlook


def outlook(engine, speculation):
    requests = pool(list(np.arange(200 * 20, dtype=np.int32).reshape(200, 20)), 2000)
    planner = Planner(planner_for(requests).cost_model, kv_capacity=100_000)
    requests.add_to(planner)
    clock = PoolClock(A100, engine, 100_000, speculation)
    nobody = np.zeros(0, np.int64)
    return clock.outlook(planner.table, WorkDone(), Running(nobody, nobody))


@pytest.mark.parametrize("engine", ["alternating", "mixed", "overlapped"])
def test_a_pool_of_long_answers_takes_about_half_as_long_with_two_tokens_a_step(engine):
    """Half the passes, half the reads of weights and KV; the rows are as many."""
    one, two = outlook(engine, Speculation()), outlook(engine, yielding(2, draft_tokens=2))
    for before, after in ((one.left, two.left), (one.left_high, two.left_high)):
        assert before / 2 <= after <= 0.6 * before


def test_drafts_that_are_rejected_cost_time():
    assert outlook("mixed", yielding(2, draft_tokens=16)).left > outlook("mixed", yielding(2, 2)).left

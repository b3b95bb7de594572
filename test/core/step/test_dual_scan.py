"""Memory partition and dual scanner (paper 5.3)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blend.core.step.dual_scan import ScanOrder, Side, scan_to_the_end
from sglang.srt.blend.core.step.pacing import Quota
from sglang.srt.blend.core.step.partition import partition_capacity, share_tokens
from sglang.srt.blend.core.step.scanner import DualScanner

densities = st.floats(1e-3, 1e3)


def scan_order(density, share=10.0, mem=1.0, new_tokens=10, output=10):
    n = len(density)
    density, mem = np.asarray(density, float), np.broadcast_to(np.asarray(mem, float), n).copy()
    shares = np.broadcast_to(np.asarray(share, float), n).copy()
    comp = np.where(np.isinf(density), 1.0, density * mem)
    return ScanOrder(
        slots=np.arange(100, 100 + n),
        density=density,
        new_tokens=np.full(n, new_tokens),
        output=np.broadcast_to(np.asarray(output, np.int64), n).copy(),
        share=shares,
        comp=comp,
        mem=np.where(np.isinf(density), 0.0, mem),
    )


def scanner(capacity, *args, **kwargs):
    result = DualScanner(capacity)
    result.load(scan_order(*args, **kwargs))
    return result


def test_figure_6_of_the_paper():
    """60 GB, rho(L) = 3.73, rho(R) = 0.096, rho_t = 1.27 -> 19.3 GB and 40.7 GB."""
    split = partition_capacity(60.0, root=1.27, compute_side=3.73, memory_side=0.096)
    assert split.compute == pytest.approx(19.3, abs=0.1)
    assert split.memory == pytest.approx(40.7, abs=0.1)


@given(st.floats(1, 1e9), densities, densities, st.floats(0, 1))
def test_partition_solves_both_equations(capacity, a, b, where):
    high, low = max(a, b), min(a, b)
    root = low + (high - low) * where
    split = partition_capacity(capacity, root=root, compute_side=high, memory_side=low)
    assert split.compute >= 0
    assert split.memory >= 0
    assert split.total == pytest.approx(capacity)
    if high - low > 1e-6 * high:
        assert split.compute * high + split.memory * low == pytest.approx(capacity * root, rel=1e-6)


@pytest.mark.parametrize(
    ("root", "high", "low", "compute"),
    [
        (1.0, 1.0, 1.0, 50),  # one density: any split works
        (9.0, 4.0, 1.0, 100),  # root above both
        (0.1, 4.0, 1.0, 0),  # root below both
        (0.0, 0.0, 0.0, 50),
        (np.inf, np.inf, 1.0, 100),
        (np.inf, np.inf, np.inf, 50),
    ],
)
def test_degenerate_partitions(root, high, low, compute):
    split = partition_capacity(100, root=root, compute_side=high, memory_side=low)
    assert (split.compute, split.memory) == pytest.approx((compute, 100 - compute), abs=1e-3)


def test_unsorted_ends_are_refused():
    with pytest.raises(ValueError, match=r"compute side density 1\.0 is below the memory side's 2\.0"):
        partition_capacity(1, root=1.5, compute_side=1.0, memory_side=2.0)


def test_a_quota_limits_the_compute_side_instead_of_its_share():
    """40 tokens are four of these prompts; the memory side is what is less dense than the work left."""
    scan = scanner(1000, [9.0] * 10 + [0.1] * 3)
    assert scan.propose(50, Quota(40, 1.0, late=1e9)) == [112, 111, 110, 100, 101, 102, 103]
    assert scan.propose(50, Quota(0, 1.0, late=1e9)) == [112, 111, 110]
    assert [scan.side_of(slot) for slot in (110, 100)] == [Side.MEMORY, None]


def test_without_a_memory_side_the_quota_holds_for_all():
    scan = scanner(1000, [9.0] * 10)
    assert scan.propose(50, Quota(25, 1.0, late=1e9)) == [100, 101, 102]  # the last of them reaches beyond it


def test_an_answer_that_would_end_last_does_not_wait_for_the_quota():
    """Dense or not: who waits until all others have begun leaves a tail of steps with few rows."""
    scan = scanner(1000, [9.0, 8.0, 3.0, 2.0], output=[10, 10, 700, 900])
    assert scan.propose(50, Quota(0, 1.0, late=901)) == []
    assert scan.propose(50, Quota(0, 1.0, late=800)) == [103]
    assert scan.side_of(103) is Side.MEMORY
    assert scan.propose(50, Quota(10, 1.0, late=600)) == [103, 102, 100]


def test_an_answer_that_would_end_last_does_not_wait_for_its_sides_share():
    scan = scanner(100, [9.0, 0.2, 0.1], share=60.0, output=[10, 700, 900])
    scan.admit(1, 90.0, Side.MEMORY)
    assert scan.propose(50, Quota(0, 1.0, late=901)) == []
    assert scan.propose(50, Quota(0, 1.0, late=800)) == [102]


def test_demand_is_what_the_dense_that_wait_will_hold():
    scan = scanner(1000, [9.0, 8.0, 3.0, 0.1], share=[10.0, 20.0, 40.0, 80.0], output=[8, 18, 28, 98])
    assert scan.root_density == pytest.approx(20.1 / 4)
    assert (scan.demand.share, scan.demand.token_steps) == (30.0, 10.0 * 10 + 20.0 * 20)
    scan.withdraw(101)
    assert (scan.demand.share, scan.demand.steps) == (10.0, 10.0)
    scan.restore(101)
    scan.withdraw(103)
    assert scan.demand.share == 30.0
    scan.load(scan.order, 3.0)
    assert scan.demand.share == 70.0


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_a_share_approaches_mean_holding_for_long_outputs(prompt, output):
    held = prompt + output / 2
    assert 0 < share_tokens(prompt, output) < held
    assert share_tokens(prompt, output) == pytest.approx(held, rel=2.1 / output)


def test_nothing_to_scan():
    empty = DualScanner(100)
    assert empty.propose(5) == []
    assert empty.root_density == 0.0
    assert empty.partition.total == 100
    assert empty.num_waiting == 0


def test_both_ends_are_proposed_under_their_shares():
    s = scanner(100, [4.0] * 50 + [1.0] * 50)  # root 2.5: halves of 5 requests
    sides = [s.side_of(slot) for slot in s.propose(100)]
    assert sides.count(Side.COMPUTE) == sides.count(Side.MEMORY) == 5


@given(
    st.lists(densities, min_size=1, max_size=40),
    st.floats(0.1, 1000),
    st.floats(0.1, 500),
    st.integers(0, 50),
)
def test_one_request_may_overfill_a_side_and_no_more(density, capacity, weight, limit):
    s = scanner(capacity, sorted(density, reverse=True), weight)
    proposed = s.propose(limit)
    if limit:
        assert proposed
    for side in Side:
        count = sum(s.side_of(slot) == side for slot in proposed)
        assert (count - 1) * weight < capacity or count <= 1


def test_request_larger_than_the_capacity_runs_alone():
    s = scanner(10, [2.0, 1.0], 1000.0)
    while s.num_waiting:
        for slot in s.propose(1):
            s.admit(slot, 1000.0, s.side_of(slot))
        for slot in (100, 101):
            s.release(slot)
    assert s.used.total == 0


def test_cursors_meet_without_proposing_anyone_twice():
    s = scanner(1e9, [3.0, 2.0, 1.0])
    assert sorted(s.propose(10)) == [100, 101, 102]


def test_withdrawn_and_restored_requests():
    s = scanner(1e9, [3.0, 2.0, 1.0])
    root = s.root_density
    s.withdraw(100)
    s.withdraw(100)
    assert (s.num_waiting, s.root_density) == (2, 1.5)
    s.restore(100)
    assert (s.num_waiting, s.root_density) == (3, root)
    assert sorted(s.propose(10)) == [100, 101, 102]
    s.forget(101)
    s.restore(101)
    assert sorted(s.propose(10)) == [100, 102]


def test_infinite_density_does_not_starve_the_memory_side():
    s = scanner(100, [np.inf, np.inf, 2.0, 1.0, 1.0])
    assert set(s.propose(5)) >= {104, 103}


def test_outliving_moves_the_account():
    s = scanner(100, [4.0, 1.0])
    s.admit(100, 30.0, Side.COMPUTE)
    s.rebalance(100, 45.0, outlived=False)
    assert (s.side_of(100), s.used.compute) == (Side.COMPUTE, 45.0)
    s.rebalance(100, 60.0, outlived=True)
    assert (s.side_of(100), s.used.compute, s.used.memory) == (Side.MEMORY, 0.0, 60.0)
    s.rebalance(999, 1.0, outlived=True)  # not running: nothing to correct
    s.release(100)
    s.release(100)
    assert s.used.total == 0.0
    assert s.side_of(100) is None


@given(st.lists(densities, max_size=40), st.floats(1, 1000), st.integers(1, 300))
def test_scan_to_the_end_admits_everyone_in_time(density, capacity, output):
    order = scan_order(sorted(density, reverse=True), 25.0, output=output)
    slots, sides, steps = scan_to_the_end(order, capacity)
    assert sorted(slots.tolist()) == order.slots.tolist()
    assert np.all(np.diff(steps) >= 0)
    assert set(sides.tolist()) <= {0, 1}


def test_shorter_requests_fill_what_the_memory_sides_next_cannot():
    s = scanner(
        1000, [4.0, 3.0, 0.5, 0.4, 0.3, 0.2], mem=[1, 1, 1, 1, 1, 1], output=[10, 10, 50, 60, 200, 300]
    )
    memory = [slot for slot in s.propose(9, longest=55) if s.side_of(slot) is Side.MEMORY]
    assert memory == [105, 102]  # the next of all the same, for somebody may have left


def test_what_fits_behind_the_memory_side_stays_on_the_compute_side():
    s = scanner(1000, [4.0, 3.0, 0.3, 0.2], output=[10, 10, 200, 300])
    assert {slot: s.side_of(slot) for slot in s.propose(9, longest=55)} == {
        103: Side.MEMORY,
        100: Side.COMPUTE,
        101: Side.COMPUTE,
    }

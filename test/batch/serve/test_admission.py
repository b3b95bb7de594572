"""What the engine is given: deadlines are kept that can be, whatever order it has for the rest."""

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.batch.serve.admission import (
    HOPELESS,
    MARGIN,
    MOST_HURRIED,
    SAFE,
    STRETCH,
    BatchWork,
    admit,
    aim,
    at_risk,
    fair_shares,
)

seconds = st.floats(0.0, 1000.0)

batches = st.builds(
    lambda key, weight, window, waiting, free, hurried: BatchWork(
        key, weight, window, aim(0.0, window), waiting, free, hurried
    ),
    key=st.sampled_from("abc"),
    weight=st.sampled_from([1.0, 4.0, 16.0]),
    window=st.floats(1.0, 1000.0),
    waiting=seconds,
    free=seconds,
    hurried=seconds,
)

STEP = 0.02


@st.composite
def feasible(draw: st.DrawFn) -> list[BatchWork]:
    """Batches that end in time one after the other, and one without end."""
    speed, done, works = MOST_HURRIED * (1.0 - MARGIN - 0.02), 0.0, []
    for window in sorted(draw(st.lists(st.floats(2.0, 30.0), min_size=1, max_size=4))):
        work = draw(st.floats(0.05, 1.0)) * max(speed * window - done, 0.01)
        done += work
        works.append(BatchWork(draw(st.sampled_from("ab")), 4.0, window, aim(0.0, window), work))
    return [*works, BatchWork("c", 4.0, 1e6, 1e6, draw(seconds))]


def worst_ends(works: list[BatchWork]) -> list[float]:
    """When batches end if all that is free is done in the order that is worst for them."""
    ends, now = [math.inf] * len(works), 0.0
    while any(work.waiting > 1e-9 for work in works[:-1]) and now < 60.0:
        shares = admit(works, now).shares
        left = STEP * (1.0 - sum(shares))
        for i in reversed(range(len(works))):
            part = STEP * shares[i] or min(left, works[i].waiting)
            left -= 0.0 if shares[i] else part
            works[i] = replace(works[i], waiting=max(works[i].waiting - part, 0.0))
        now += STEP
        for i, work in enumerate(works):
            if work.waiting <= 1e-9:
                ends[i] = min(ends[i], now)
    return ends


@settings(max_examples=60, deadline=None)
@given(feasible())
def test_every_deadline_that_can_be_kept_is_kept(works: list[BatchWork]) -> None:
    ends = worst_ends(list(works))
    assert all(end <= work.deadline for end, work in zip(ends[:-1], works, strict=False)), ends


@given(st.lists(batches, max_size=6), seconds)
def test_shares_are_parts_of_one_engine(works: list[BatchWork], now: float) -> None:
    shares = admit(works, now).shares
    assert all(0.0 <= share <= 1.0 for share in shares)
    assert sum(shares) <= 1.0 + 1e-9
    assert all(share == 0.0 for share, work in zip(shares, works, strict=True) if not work.waiting)


@given(st.lists(batches, min_size=1, max_size=6))
def test_without_a_deadline_at_risk_equal_batches_are_all_free(works: list[BatchWork]) -> None:
    equal = [replace(work, key=f"{i}", weight=1.0, waiting=5.0, free=1.0) for i, work in enumerate(works)]
    equal = [replace(work, hurried=0.0, deadline=1e6, aim=1e6) for work in equal]
    admission = admit(equal, 0.0)
    assert set(admission.shares) == {0.0}
    assert admission.room > 5.0 * len(equal)


@given(st.lists(batches, max_size=6), seconds)
def test_what_is_given_freely_ends_before_the_nearest_deadline_of_all_that_is_free(
    works: list[BatchWork], now: float
) -> None:
    admission = admit(works, now)
    rest = 1.0 - sum(admission.shares)
    free = sum(work.free for work in works)
    for work in works:
        if work.free and work.work <= HOPELESS * (work.deadline - now) and admission.room > 0.0:
            assert free + admission.room <= rest * SAFE * (work.aim - now) + 1e-6


@given(st.lists(batches, max_size=6), seconds)
def test_those_at_risk_are_those_that_would_be_late_as_the_last(works: list[BatchWork], now: float) -> None:
    late, total = at_risk(works, now), sum(work.work for work in works)
    assert late == sorted(late, key=lambda i: works[i].deadline)
    for i, work in enumerate(works):
        kept = total <= SAFE * (work.aim - now)
        assert (i in late) == (not kept and work.work <= HOPELESS * (work.deadline - now))


def test_keys_share_equally_whatever_number_of_batches_they_have() -> None:
    shares = fair_shares([BatchWork(key, 4.0, 9e9, 9e9, 10.0) for key in ("many",) * 9 + ("one",)])
    assert math.isclose(shares[-1], 0.5)
    assert math.isclose(sum(shares), 1.0)


def test_a_small_batch_beside_a_large_one_gets_part_of_its_fair_share() -> None:
    works = [BatchWork("a", 4.0, 9e9, 9e9, 36_000.0), BatchWork("b", 4.0, 9e9, 9e9, 60.0)]
    assert admit(works, 0.0).shares == (0.0, 0.5 / STRETCH)


def test_a_batch_that_cannot_end_in_time_gets_no_more_than_others() -> None:
    works = [BatchWork("a", 4.0, 9e9, 9e9, 3600.0), BatchWork("b", 4.0, 900.0, 810.0, 36_000.0)]
    assert admit(works, 0.0).shares[1] == 0.0


def test_a_batch_of_which_nothing_was_measured_is_not_given_up() -> None:
    works = [BatchWork("a", 4.0, 9e9, 9e9, 3600.0)]
    guessed = BatchWork("b", 4.0, 900.0, 810.0, 36_000.0, known=False)
    assert admit([*works, guessed], 0.0).shares[1] == MOST_HURRIED


def test_the_nearest_deadline_leaves_a_tenth_to_other_keys() -> None:
    works = [BatchWork("a", 4.0, 9e9, 9e9, 36_000.0), BatchWork("b", 4.0, 900.0, 810.0, 900.0)]
    assert admit(works, 0.0).shares[1] == MOST_HURRIED

"""Whose lines the engine gets, and which of them go ahead of others: all open batches are one pool.

Lines that are given to the engine freely are ordered by its scheduler, and nobody can say which comes last.
So that is done only where everything that the engine then has would still end in time for the batch with the
nearest deadline. A batch for which that cannot be said is hurried instead: its lines go ahead of all others,
at about the rate at which it ends in time, so that the rest of the engine goes on blending. A batch that
is small beside the others is hurried, too, at a part of its fair share.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

MARGIN = 0.2
"""Part of a window that a batch should end before it is over."""

SAFE = 0.5
"""Part of the time left in which all batches must be done for one of them not to be at risk: forecasts err,
and what was given freely cannot be taken back."""

HASTE = 2.0
"""Times the rate at which a batch would just end in time: who begins late, or takes long, is not known."""

MOST_HURRIED = 0.9
"""Part of the engine that batches of which the window is at risk get at most while other keys wait."""

STRETCH = 2.0
"""A batch ends after so many times as long as with its fair share of the engine, or sooner."""

HOPELESS = 2.0
"""A batch that would need so many engines to end in its window is not hurried for it."""

STEPS = 200
"""Decisions that a forecast looks ahead at most."""


@dataclass(frozen=True, slots=True)
class BatchWork:
    """What is left of an open batch, in seconds of the whole engine.

    Attributes:
        key: whose it is.
        weight: of its priority, positive.
        deadline: second at which its window ends, of the clock that `admit` is told.
        aim: second at which it should have ended.
        waiting: of lines that the engine does not have.
        free: of lines that the engine has and orders as it likes.
        hurried: of lines that the engine has and takes first.
        known: whether what its lines take was measured; what is only expected may be many times too much.
    """

    key: str
    weight: float
    deadline: float
    aim: float
    waiting: float
    free: float = 0.0
    hurried: float = 0.0
    known: bool = True

    @property
    def work(self) -> float:
        """All that is left of it."""
        return self.waiting + self.free + self.hurried


@dataclass(frozen=True, slots=True)
class Admission:
    """What may be given to the engine.

    Attributes:
        shares: for each batch the part of the engine that its waiting lines get ahead of others; 0: they are
            given freely. In sum 1 at most if the engine's speed is sure.
        room: seconds of work that may be given freely.
    """

    shares: tuple[float, ...]
    room: float


def aim(begin: float, deadline: float) -> float:
    """The second at which a batch should have ended, so that an error of the forecast does no harm."""
    return deadline - MARGIN * (deadline - begin)


def admit(batches: Sequence[BatchWork], now: float, *, sure: bool = True) -> Admission:
    """Decide what the engine is given.

    Batches whose deadlines an engine of `MOST_HURRIED` its speed could keep, nearest deadline first, end in
    time if they are given to it at the rates that this says, asked again and again.

    Args:
        sure: whether the engine's speed is known; if it is not, it is too early to say that a deadline cannot
            be kept, or how much is left to others.
    """
    shares = _for_deadlines(batches, now, sure)
    left = max(1.0 - sum(shares), 0.0)
    more = [max(share - hurried, 0.0) for share, hurried in zip(_for_fairness(batches), shares, strict=True)]
    scale = min(left / sum(more), 1.0) if any(more) else 0.0
    shares = [share + scale * extra for share, extra in zip(shares, more, strict=True)]
    return Admission(tuple(shares), _room(batches, now, max(1.0 - sum(shares), 0.0)))


def at_risk(batches: Sequence[BatchWork], now: float, *, sure: bool = True) -> list[int]:
    """Batches that might not end in time if all others came before them; the nearest deadline first."""
    total = sum(batch.work for batch in batches)
    late = [
        i
        for i, batch in enumerate(batches)
        if total > SAFE * (batch.aim - now) and not (sure and _is_hopeless(batch, now))
    ]
    return sorted(late, key=lambda i: (batches[i].deadline, i))


def _is_hopeless(batch: BatchWork, now: float) -> bool:
    # Of one that is not known it is too early to say: its first lines, hurried, will tell.
    return batch.known and batch.work > HOPELESS * (batch.deadline - now)


def _for_deadlines(batches: Sequence[BatchWork], now: float, sure: bool) -> list[float]:
    shares = [0.0] * len(batches)
    left = MOST_HURRIED if len({batch.key for batch in batches if batch.waiting > 0.0}) > 1 else 1.0
    left = left if sure else math.inf
    for i in at_risk(batches, now, sure=sure):
        batch = batches[i]
        if batch.waiting > 0.0:
            time_left = batch.aim - now
            shares[i] = min(HASTE * batch.waiting / time_left, left) if time_left > 0.0 else left
            left = max(left - shares[i], 0.0) if sure else left
    return shares


def fair_shares(batches: Sequence[BatchWork]) -> list[float]:
    """Divide the engine among keys by their most urgent batch's weight, and each key's part by weight.

    >>> works = [BatchWork("a", 1, 9, 9, 1), BatchWork("a", 3, 9, 9, 1), BatchWork("b", 1, 9, 9, 1)]
    >>> [round(share, 4) for share in fair_shares(works)]
    [0.1875, 0.5625, 0.25]
    """
    weights: dict[str, list[float]] = defaultdict(list)
    for batch in batches:
        if batch.work > 0.0:
            weights[batch.key].append(batch.weight)
    total = sum(map(max, weights.values()))
    return [
        max(weights[batch.key]) / total * batch.weight / sum(weights[batch.key]) if batch.work > 0.0 else 0.0
        for batch in batches
    ]


def _for_fairness(batches: Sequence[BatchWork]) -> list[float]:
    """Shares of batches that might end later than `STRETCH` times what is fair."""
    total = sum(batch.work for batch in batches)
    return [
        fair / STRETCH if batch.waiting > 0.0 and total * fair > STRETCH * batch.work else 0.0
        for batch, fair in zip(batches, fair_shares(batches), strict=True)
    ]


def _room(batches: Sequence[BatchWork], now: float, rest: float) -> float:
    """Seconds of work that the engine may have beyond what it has, for all that is free to end in time."""
    nearest = min(
        (batch.aim - now for batch in batches if batch.free > 0.0 and not _is_hopeless(batch, now)),
        default=math.inf,
    )
    if nearest == math.inf:
        return math.inf
    return rest * SAFE * max(nearest, 0.0) - sum(batch.free for batch in batches)


def forecast_ends(batches: Sequence[BatchWork], now: float, *, sure: bool = True) -> list[float]:
    """Foretell when batches end: those that are hurried at their rates, the others together.

    The scheduler takes what it has freely from all over the pool, so that nobody's last line comes early.

    Returns:
        The second of each batch's end.
    """
    left = [batch.work for batch in batches]
    ends = [now if not work else math.inf for work in left]
    horizon = now + sum(left)
    for _ in range(STEPS):
        open_ones = [i for i, work in enumerate(left) if work > 0.0]
        if not open_ones:
            break
        works = [replace(batches[i], waiting=left[i], free=0.0, hurried=0.0) for i in open_ones]
        rates = _rates(works, admit(works, now, sure=sure).shares)
        first = min(works[k].work / rate for k, rate in enumerate(rates) if rate > 0.0)
        step = min(first, max((horizon - now) * 2 / STEPS, first * 1e-3))
        now += step
        for k, i in enumerate(open_ones):
            left[i] = max(left[i] - rates[k] * step, 0.0)
            if left[i] <= 1e-9 * horizon:
                left[i], ends[i] = 0.0, now
    return [horizon if end == math.inf else end for end in ends]


def _rates(works: Sequence[BatchWork], shares: Sequence[float]) -> list[float]:
    """Parts of the engine that batches get, all of it together."""
    hurried = sum(shares)
    if hurried == math.inf:
        endless = [share == math.inf for share in shares]
        return [one / sum(endless) for one in endless]
    free = sum(work.work for work, share in zip(works, shares, strict=True) if share == 0.0)
    if hurried >= 1.0 or not free:
        return [share / hurried for share in shares]
    return [share or (1.0 - hurried) * work.work / free for work, share in zip(works, shares, strict=True)]

"""When a run will be done: modelled seconds left at the speed measured so far, or lines left at their rate.

The scheduler under blend knows its pool and a model of the hardware. The model need not be right in seconds,
only in proportion: what it said of the work that is done, beside the seconds that this took, corrects what it
says of the rest. `benchmark/eta_error.py` states the error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MARGIN = 0.1
"""Relative error that is expected of a prediction when all lengths are known."""

SURE = 0.1
"""Part of the error that comes from unknown lengths, below which one number is told instead of two."""


@dataclass(frozen=True, slots=True)
class Eta:
    """Seconds from now until the end.

    Attributes:
        low, high: between which it is likely to come.
        sure: whether `seconds` alone may be told.
    """

    seconds: float
    low: float
    high: float
    sure: bool

    def text(self) -> str:
        """Write it for people.

        >>> Eta(840, 720, 1200, sure=False).text()
        '12 to 20 min'
        >>> Eta(840, 760, 924, sure=True).text()
        '~14 min'
        """
        if self.sure:
            return f"~{duration(self.seconds)}"
        low, high = duration(self.low), duration(self.high)
        if low == high:
            return f"~{low}"
        (number, unit), (_, *other) = low.split(" ", 1), high.split(" ")
        return f"{number if other == [unit] else low} to {high}"


@dataclass(frozen=True, slots=True)
class PoolState:
    """What the scheduler says of its pool.

    Attributes:
        done, left: modelled seconds of what is behind and of what is to come.
        left_high: of what is to come if answers are longer, as far as is likely.
        estimated: share of the output tokens to come whose number is an estimate, 0 to 1.
        answers: answers of unknown length that are in, from which estimates are made.
    """

    done: float
    left: float
    left_high: float
    estimated: float
    answers: int


class ModelledEta:
    """Predicts the end of a run from what its scheduler says every now and then."""

    def __init__(self) -> None:
        self._began = 0.0  # seconds at which the first work began, as far as was seen
        self._seen = 0.0
        self._state: PoolState | None = None

    def observe(self, seconds: float, state: PoolState) -> None:
        """Take the pool's state, `seconds` after the start of the run."""
        anew = self._state is not None and state.done < self._state.done  # another engine
        if state.done == 0.0 or anew or self._state is None:
            self._began = seconds
        self._seen, self._state = seconds, state

    def eta(self, seconds: float, *, submitted: int, beyond: int) -> Eta | None:
        """Predict the end.

        Args:
            seconds: since the start of the run, now.
            submitted: lines that the pool has seen, done or not.
            beyond: lines that follow when there is room; they are taken for as long as the pool's.

        Returns:
            None as long as there is nothing to go by.
        """
        state = self._state
        if state is None or state.done <= 0.0 or self._seen <= self._began:
            return None
        if state.estimated > 0.5 and not state.answers:
            return None
        speed = (self._seen - self._began) / state.done
        modelled = state.left + (state.done + state.left) * beyond / max(submitted, 1)
        since = seconds - self._seen
        remaining = max(speed * modelled - since, 0.0)
        longer = max(speed * (modelled + state.left_high - state.left) - since, 0.0)
        unsure = state.estimated / math.sqrt(max(state.answers, 1))
        factor = 1.0 + MARGIN + unsure
        high = max(remaining * factor, longer)
        sure = unsure < SURE and high <= (1.0 + MARGIN + SURE) * remaining
        return Eta(remaining, remaining / factor, high, sure)


def rate_eta(seconds: float, done: int, left: int) -> Eta | None:
    """Predict the end from the rate of lines so far; None before the first.

    Lines that take long are the last to be done, so this is a lower bound more often than not.
    """
    if done <= 0 or seconds <= 0.0:
        return None
    remaining = left * seconds / done
    return Eta(remaining, remaining, remaining, sure=True)


def duration(seconds: float) -> str:
    """Write a duration as far as anybody cares.

    >>> [duration(s) for s in (0.2, 44, 100, 840, 4000, 300_000)]
    ['0 s', '44 s', '100 s', '14 min', '1 h 07 min', '83 h 20 min']
    """
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"

"""Future KV use of the running requests: how much memory admission may promise.

A running request grows by one token per step and gives its tokens back when it ends, so the peak
lies at one of the endings. Budgeting that peak with estimated lengths uses the memory that summing
every request's own maximum would leave idle.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]


PARTS = 4
"""Parts of a request, of equal probability, that end one after another where its length is not known."""

# What the variance of one request's tokens gains, in squares of them, when another of its parts ends.
_VARIANCE = np.diff([(1.0 - k / PARTS) * k / PARTS for k in range(PARTS + 1)])


@njit(cache=True)
def _peak(now_used, ends, released, variance, deviations, extra_remaining, extra_released):  # type: ignore[no-untyped-def]
    """Peak of parts sorted by their ends, with one request more unless extra_remaining < 0; all in parts.

    With one more, nothing after its end is looked at.
    """
    used = now_used
    peak = float(now_used)
    growing = len(ends)
    pending = extra_remaining >= 0
    if pending:
        growing += PARTS
    elapsed, noise = np.int64(0), 0.0
    for i in range(len(ends)):
        if pending and extra_remaining <= ends[i]:
            break
        used += (ends[i] - elapsed) * growing
        elapsed = ends[i]
        peak = max(peak, used + deviations * math.sqrt(max(noise, 0.0)))
        used -= released[i] + ends[i]
        noise += variance[i] * (released[i] + ends[i]) ** 2
        growing -= 1
    if pending:
        used += (extra_remaining - elapsed) * growing
        peak = max(peak, used + deviations * math.sqrt(max(noise, 0.0)))
    return peak


@njit(cache=True)
def _longest(now_used, ends, released, variance, deviations, room):  # type: ignore[no-untyped-def]
    """Largest extra_remaining with which `_peak` stays within room; -1 if none does."""
    used = now_used
    if used > room:
        return np.int64(-1)
    growing = len(ends) + PARTS
    elapsed, noise, least = np.int64(0), 0.0, 0.0
    for i in range(len(ends)):
        least = deviations * math.sqrt(max(noise, 0.0))
        if used + (ends[i] - elapsed) * growing + least > room:
            break
        used += (ends[i] - elapsed) * growing - released[i] - ends[i]
        noise += variance[i] * (released[i] + ends[i]) ** 2
        elapsed = ends[i]
        growing -= 1
    least = deviations * math.sqrt(max(noise, 0.0))
    return max(elapsed + np.int64(np.floor((room - used - least) / growing)), np.int64(-1))


class KVForecast:
    """Highest future KV use, in tokens, of the running requests and of those one might add.

    A request whose length is not known is `PARTS` parts that end at quantiles of what it has left, so that
    the tokens of many add up to what is expected of them at any time. Some deviations of that sum stay free
    besides, but no forecast exceeds what is held if nobody ends at all.

    Args:
        used: tokens held now, shared prefixes counted once.
        ends: int64 (n, PARTS) steps until parts of each running request end, ascending; all the same where
            that is known.
        released: int64 (n,) tokens that only this request holds now; it frees them, and what it has
            yet to produce, when it ends.
        deviations: standard deviations by which use may turn out higher.

    Two requests hold 100 tokens each; one ends in 10 steps, the other in 50:

    >>> forecast = KVForecast.of_known(200, np.array([10, 50]), np.array([100, 100]))
    >>> forecast.peak()
    220
    >>> forecast.peak_with(30, 20)  # before the first ends, three grow
    260
    >>> forecast.longest(30, room=250)  # steps that it may take, to stay within 250 tokens
    6

    Nobody knows when the first ends. Then most of it is gone before the other ends:

    >>> KVForecast(200, np.array([[2, 6, 14, 40], [50] * 4]), np.array([100, 100])).peak()
    204
    """

    def __init__(self, used: int, ends: Ints, released: Ints, deviations: float = 0.0) -> None:
        order = np.argsort(ends, axis=None, kind="stable")
        self._used = PARTS * used
        self._deviations = PARTS * deviations
        self._requests = len(ends)
        self._ends: Ints = np.asarray(ends, np.int64).ravel()[order]
        self._released: Ints = np.repeat(np.asarray(released, np.int64), PARTS)[order]
        unknown = ends[:, :1] < ends[:, -1:]
        self._variance = np.where(unknown, _VARIANCE, 0.0).ravel()[order]

    @classmethod
    def of_known(cls, used: int, remaining: Ints, released: Ints) -> KVForecast:
        """The forecast of requests, (n,), that end in so many steps for certain."""
        return cls(used, np.repeat(remaining, PARTS).reshape(-1, PARTS), released)

    def __len__(self) -> int:
        return self._requests

    def peak(self) -> int:
        """Peak if nothing more is admitted, without deviations."""
        peak = _peak(self._used, self._ends, self._released, self._variance, 0.0, -1, 0)
        return int(np.ceil(peak / PARTS))

    def peak_with(self, new_tokens: int, remaining: int) -> int:
        """Peak until the end of a request that takes `new_tokens` now and produces `remaining` more.

        What comes after it has left is not its doing.
        """
        used = self._used + PARTS * new_tokens
        parts = self._ends, self._released, self._variance, self._deviations
        peak = int(np.ceil(_peak(used, *parts, remaining, new_tokens) / PARTS))
        return min(peak, used // PARTS + remaining * (len(self) + 1))

    def longest(self, new_tokens: int, room: int) -> int:
        """Largest `remaining` with which `peak_with` stays within `room`; -1 if none does."""
        used = self._used + PARTS * new_tokens
        parts = self._ends, self._released, self._variance, self._deviations
        longest = int(_longest(used, *parts, PARTS * room))
        return max(longest, (room - used // PARTS) // (len(self) + 1), -1)

    def add(self, new_tokens: int, remaining: int) -> None:
        """Admit that request."""
        at = int(np.searchsorted(self._ends, remaining))
        self._ends = np.insert(self._ends, at, [remaining] * PARTS)
        self._released = np.insert(self._released, at, [new_tokens] * PARTS)
        self._variance = np.insert(self._variance, at, [0.0] * PARTS)
        self._used += PARTS * new_tokens
        self._requests += 1

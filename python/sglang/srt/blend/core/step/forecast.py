"""Future KV use of the running requests: how much memory admission may promise.

A running request grows by one token per step and gives its tokens back when it ends, so the peak
lies at one of the endings. Budgeting that peak with estimated lengths uses the memory that summing
every request's own maximum would leave idle.
"""

from __future__ import annotations

import math
from copy import copy
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


PARTS = 4
"""Parts of a request, of equal probability, that end one after another where its length is not known."""

# What the variance of one request's tokens gains, in squares of them, when another of its parts ends.
_VARIANCE = np.diff([(1.0 - k / PARTS) * k / PARTS for k in range(PARTS + 1)])


@njit(cache=True)
def _peak(now_used, ends, released, variance, parts, deviations, extra_remaining):  # type: ignore[no-untyped-def]
    """Peak of parts sorted by their ends, with one request more unless extra_remaining < 0; all in parts.

    With one more, nothing after its end is looked at.
    """
    used = now_used
    peak = float(now_used)
    growing = parts
    pending = extra_remaining >= 0
    if pending:
        growing += PARTS
    elapsed, noise = np.int64(0), 0.0
    for i in range(parts):
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
def _longest(now_used, ends, released, variance, parts, deviations, room):  # type: ignore[no-untyped-def]
    """Largest extra_remaining with which `_peak` stays within room; -1 if none does."""
    used = now_used
    if used > room:
        return np.int64(-1)
    growing = parts + PARTS
    elapsed, noise, least = np.int64(0), 0.0, 0.0
    for i in range(parts):
        least = deviations * math.sqrt(max(noise, 0.0))
        if used + (ends[i] - elapsed) * growing + least > room:
            break
        used += (ends[i] - elapsed) * growing - released[i] - ends[i]
        noise += variance[i] * (released[i] + ends[i]) ** 2
        elapsed = ends[i]
        growing -= 1
    least = deviations * math.sqrt(max(noise, 0.0))
    return max(elapsed + np.int64(np.floor((room - used - least) / growing)), np.int64(-1))


@njit(cache=True)
def _insert(ends, released, variance, parts, remaining, new_tokens):  # type: ignore[no-untyped-def]
    """Add the parts of a request that ends for certain, behind `parts` sorted ones, where room is."""
    at = parts
    while at > 0 and ends[at - 1] >= remaining:
        at -= 1
        ends[at + PARTS], released[at + PARTS], variance[at + PARTS] = ends[at], released[at], variance[at]
    for i in range(at, at + PARTS):
        ends[i], released[i], variance[i] = remaining, new_tokens, 0.0


_ROOM = 64 * PARTS
# Parts for which there is room when the first request is added.


class _Parts(NamedTuple):
    """Parts of requests, (m,) in order of their ends; behind those that count there may be room for more."""

    ends: Ints
    released: Ints
    variance: Floats

    def those(self, which: NDArray[np.bool_]) -> _Parts:
        """Copies of the parts of a mask, (m,) or shorter."""
        ends, released, variance = self
        n = len(which)
        return _Parts(ends[:n][which], released[:n][which], variance[:n][which])

    def with_room(self, parts: int) -> _Parts:
        """The same with room for so many more."""
        ends, released, variance = self
        more = np.zeros(parts, np.int64)
        return _Parts(
            np.append(ends, more), np.append(released, more), np.append(variance, more.astype(np.float64))
        )


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
        owner = order // PARTS
        parts = _Parts(
            ends=np.asarray(ends, np.int64).ravel()[order],
            released=np.asarray(released, np.int64)[owner],
            variance=np.where((ends[:, 0] < ends[:, -1])[owner], _VARIANCE[order % PARTS], 0.0),
        )
        self._set(used, deviations, parts, owner)

    def _set(self, used: int, deviations: float, parts: _Parts, owner: Ints) -> None:
        self._used = PARTS * used
        self._deviations = PARTS * deviations
        self._requests = len(parts.ends) // PARTS
        self._parts = parts
        self._owner = owner  # of the parts that were there at first

    @classmethod
    def of_known(cls, used: int, remaining: Ints, released: Ints) -> KVForecast:
        """The forecast of requests, (n,), that end in so many steps for certain."""
        return cls(used, np.repeat(remaining, PARTS).reshape(-1, PARTS), released)

    def of_those(self, present: NDArray[np.bool_], used: int) -> KVForecast:
        """The forecast of some of the requests that it was made of.

        Args:
            present: (n,) which of them.
            used: tokens that they hold now.
        """
        some = object.__new__(KVForecast)
        some._set(used, self._deviations / PARTS, self._parts.those(present[self._owner]), self._owner[:0])
        return some

    def copy(self) -> KVForecast:
        """A forecast that goes its own way from here."""
        same = copy(self)
        same._parts = self._parts.with_room(0)  # copies
        return same

    def __len__(self) -> int:
        return self._requests

    def peak(self) -> int:
        """Peak if nothing more is admitted, without deviations."""
        peak = _peak(self._used, *self._parts, PARTS * len(self), 0.0, -1)
        return int(np.ceil(peak / PARTS))

    def peak_with(self, new_tokens: int, remaining: int) -> int:
        """Peak until the end of a request that takes `new_tokens` now and produces `remaining` more.

        What comes after it has left is not its doing.
        """
        used = self._used + PARTS * new_tokens
        peak = _peak(used, *self._parts, PARTS * len(self), self._deviations, remaining)
        return int(min(math.ceil(peak / PARTS), used // PARTS + remaining * (len(self) + 1)))

    def longest(self, new_tokens: int, room: int) -> int:
        """Largest `remaining` with which `peak_with` stays within `room`; -1 if none does."""
        used = self._used + PARTS * new_tokens
        longest = int(_longest(used, *self._parts, PARTS * len(self), self._deviations, PARTS * room))
        return max(longest, (room - used // PARTS) // (len(self) + 1), -1)

    def add(self, new_tokens: int, remaining: int) -> None:
        """Admit that request."""
        parts = PARTS * len(self)
        if parts == len(self._parts.ends):
            self._parts = self._parts.with_room(max(parts, _ROOM))
        _insert(*self._parts, parts, remaining, new_tokens)
        self._used += PARTS * new_tokens
        self._requests += 1

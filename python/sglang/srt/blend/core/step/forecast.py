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


_DIGIT_BITS = 11
_DIGITS = 1 << _DIGIT_BITS

_ROOM = 64 * PARTS
# Parts for which there is room when the first request is added.


class _Parts(NamedTuple):
    """Parts of requests, (m,) in order of their ends; behind those that count there may be room for more."""

    ends: Ints
    released: Ints
    variance: Floats

    def with_room(self, parts: int) -> _Parts:
        """Copies with room for so many more."""
        more = np.zeros(parts, np.int64)
        return _Parts(*(np.append(column, more.astype(column.dtype)) for column in self))


@njit(cache=True)
def _by_end(ends):  # type: ignore[no-untyped-def]
    """Indices that sort (m,) ends, equal ones as they come. They are small numbers, so digit by digit."""
    order, other = np.arange(len(ends)), np.empty(len(ends), np.int64)
    last, shift = ends.max() if len(ends) else 0, 0
    while last >> shift > 0:
        first = np.zeros(_DIGITS + 1, np.int64)
        for end in ends:
            first[((end >> shift) & (_DIGITS - 1)) + 1] += 1
        for digit in range(_DIGITS):
            first[digit + 1] += first[digit]
        for i in order:
            digit = (ends[i] >> shift) & (_DIGITS - 1)
            other[first[digit]] = i
            first[digit] += 1
        order, other = other, order
        shift += _DIGIT_BITS
    return order


@njit(cache=True)
def _in_order(order, ends, released, present):  # type: ignore[no-untyped-def]
    """Ends, released tokens and variance of the parts of requests that are present, with room for more."""
    count = PARTS * present.sum() + _ROOM
    sorted_ends, own = np.empty(count, np.int64), np.empty(count, np.int64)
    variance, i = np.empty(count), 0
    for part in order:
        request, k = part // PARTS, part % PARTS
        if present[request]:
            sorted_ends[i], own[i] = ends[request, k], released[request]
            unknown = ends[request, 0] < ends[request, PARTS - 1]
            variance[i] = _VARIANCE[k] if unknown else 0.0
            i += 1
    return sorted_ends, own, variance


class KVForecast:
    """Highest future KV use, in tokens, of the running requests and of those one might add.

    A request whose length is not known is `PARTS` parts that end at quantiles of what it has left, so that
    the tokens of many add up to what is expected of them at any time. Some deviations of that sum stay free
    besides, but no forecast exceeds what is held if nobody ends at all.

    Args:
        used: tokens held now, shared prefixes counted once.
        ends: int64 (n, PARTS) steps until parts of each running request end, 0 or more, ascending; all the
            same where that is known.
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
        ends, released = np.asarray(ends, np.int64), np.asarray(released, np.int64)
        self._made_of = _by_end(ends.ravel()), ends, released
        self._deviations = PARTS * deviations
        self._hold(used, np.ones(len(released), np.bool_))

    def _hold(self, used: int, present: NDArray[np.bool_]) -> None:
        self._used = PARTS * used
        self._requests = int(np.count_nonzero(present))
        self._parts = _Parts(*_in_order(*self._made_of, present))

    @classmethod
    def of_known(cls, used: int, remaining: Ints, released: Ints) -> KVForecast:
        """The forecast of requests, (n,), that end in so many steps for certain."""
        return cls(used, np.repeat(remaining, PARTS).reshape(-1, PARTS), released)

    def of_those(self, present: NDArray[np.bool_]) -> KVForecast:
        """The forecast of some of the requests that it was made of, as if the others had given back theirs.

        Args:
            present: (n,) which of them. None has been added since.
        """
        some = copy(self)
        some._hold(self._used // PARTS - int(self._made_of[2][~present].sum()), present)
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

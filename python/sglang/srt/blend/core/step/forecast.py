"""Future KV use of the running requests: how much memory admission may promise.

A running request grows by one token per step and gives its tokens back when it ends, so the peak
lies at one of the endings. Budgeting that peak with estimated lengths uses the memory that summing
every request's own maximum would leave idle.
"""

from __future__ import annotations

from copy import copy

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]

PARTS = 4
"""Parts of a request, of equal probability, that end one after another where its length is not known."""

# What the variance of one request's tokens gains, in squares of them, when another of its parts ends.
_VARIANCE = np.diff([(1.0 - k / PARTS) * k / PARTS for k in range(PARTS + 1)])


_ENDS, _RELEASED, _HELD, _MARGIN = range(4)
# Rows of an array of parts, one in each column, in order of their ends: the steps until it ends; what it
# holds now; what all hold when it ends, before it gives back its own; and what stays free then for answers
# that turn out longer, rounded up, as bounds are whole. All but the first count PARTS to a token. Behind the
# last part one more margin is for later.

_ROOM = 64 * PARTS
# Columns for requests that are added.

_DIGIT_BITS = 11
_DIGITS = 1 << _DIGIT_BITS


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
def _lay_out(order, ends, released, present, used, deviations):  # type: ignore[no-untyped-def]
    """The parts of those present, their number, and what is used once all others have given back theirs."""
    count = np.int64(0)
    for request in range(len(present)):
        if present[request]:
            count += PARTS
        else:
            used -= released[request]
    parts, noise = np.empty((4, count + 1 + _ROOM), np.int64), np.zeros(count + 1)
    all_ends, all_own, all_hold, i = parts[_ENDS], parts[_RELEASED], parts[_HELD], 0
    for part in order:
        request, k = part // PARTS, part % PARTS
        if present[request]:
            all_ends[i], all_own[i] = ends[request, k], released[request]
            if ends[request, 0] < ends[request, PARTS - 1]:
                noise[i + 1] = _VARIANCE[k]
            i += 1
    held, elapsed = PARTS * used, np.int64(0)
    for i in range(count):
        end, gives_back = all_ends[i], all_own[i] + all_ends[i]
        held += (end - elapsed) * (count - i)
        all_hold[i] = held
        held, elapsed = held - gives_back, end
        noise[i + 1] = noise[i] + noise[i + 1] * np.float64(gives_back) ** 2
    for i in range(count + 1):
        parts[_MARGIN, i] = np.int64(np.ceil(deviations * np.sqrt(max(noise[i], 0.0))))
    return parts, count, used


@njit(cache=True)
def _held_at(parts, count, used, ended, steps):  # type: ignore[no-untyped-def]
    """What all hold in so many steps, by when so many parts have ended."""
    if ended == 0:
        return PARTS * used + steps * count
    last = ended - 1
    held = parts[_HELD, last] - parts[_RELEASED, last] - parts[_ENDS, last]
    return held + (steps - parts[_ENDS, last]) * (count - ended)


@njit(cache=True)
def _peak_with(parts, count, used, remaining):  # type: ignore[no-untyped-def]
    """Peak until one request more ends, which takes nothing now; with what stays free."""
    ends, all_hold, margin = parts[_ENDS], parts[_HELD], parts[_MARGIN]
    ended, peak = np.searchsorted(ends[:count], remaining), PARTS * used
    for i in range(ended):
        peak = max(peak, all_hold[i] + margin[i] + PARTS * ends[i])
    at_end = _held_at(parts, count, used, ended, remaining) + PARTS * remaining
    return max(peak, at_end + margin[ended])


@njit(cache=True)
def _longest(parts, count, used, room):  # type: ignore[no-untyped-def]
    """Largest `remaining` with which `_peak_with` stays within `room` tokens; -1 if none does."""
    if used > room:
        return np.int64(-1)
    ended, elapsed, free = 0, np.int64(0), PARTS * room
    while ended < count:
        end = parts[_ENDS, ended]
        if parts[_HELD, ended] + parts[_MARGIN, ended] + PARTS * end > free:
            break
        elapsed = end
        ended += 1
    free -= _held_at(parts, count, used, ended, elapsed) + PARTS * elapsed + parts[_MARGIN, ended]
    return max(elapsed + free // (count - ended + PARTS), np.int64(-1))


@njit(cache=True)
def _add(parts, count, used, new_tokens, remaining):  # type: ignore[no-untyped-def]
    """Insert the parts of a request that ends for certain, where there is room."""
    ends, all_hold = parts[_ENDS], parts[_HELD]
    at = np.searchsorted(ends[:count], remaining)
    held = _held_at(parts, count, used, at, remaining) + PARTS * (new_tokens + remaining)
    for row in range(4):
        parts[row, at + PARTS : count + 1 + PARTS] = parts[row, at : count + 1].copy()
    for i in range(PARTS):
        ends[at + i], parts[_RELEASED, at + i] = remaining, new_tokens
        all_hold[at + i] = held - i * (new_tokens + remaining)
        parts[_MARGIN, at + i] = parts[_MARGIN, at + PARTS]
    for i in range(at):
        all_hold[i] += PARTS * (new_tokens + ends[i])


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
        self._parts, count, used = _lay_out(*self._made_of, present, used, self._deviations)
        self._count, self._used = int(count), int(used)

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
        some._hold(self._used, present)
        return some

    def copy(self) -> KVForecast:
        """A forecast that goes its own way from here."""
        same = copy(self)
        same._parts = self._parts.copy()
        return same

    def __len__(self) -> int:
        return self._count // PARTS

    def peak(self) -> int:
        """Peak if nothing more is admitted, without deviations."""
        held = self._parts[_HELD, : self._count].max(initial=PARTS * self._used)
        return -(-int(held) // PARTS)

    def peak_with(self, new_tokens: int, remaining: int) -> int:
        """Peak until the end of a request that takes `new_tokens` now and produces `remaining` more.

        What comes after it has left is not its doing.
        """
        peak = -(-int(_peak_with(self._parts, self._count, self._used, remaining)) // PARTS)
        return new_tokens + min(peak, self._used + remaining * (len(self) + 1))

    def longest(self, new_tokens: int, room: int) -> int:
        """Largest `remaining` with which `peak_with` stays within `room`; -1 if none does."""
        room -= new_tokens
        longest = int(_longest(self._parts, self._count, self._used, room))
        return max(longest, (room - self._used) // (len(self) + 1), -1)

    def add(self, new_tokens: int, remaining: int) -> None:
        """Admit that request."""
        if self._count + PARTS >= self._parts.shape[1]:
            more = np.empty((4, self._count), np.int64)
            self._parts = np.concatenate([self._parts, more], axis=1)
        _add(self._parts, self._count, self._used, new_tokens, remaining)
        self._count += PARTS
        self._used += new_tokens

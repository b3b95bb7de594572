"""Future KV use of the running requests: how much memory admission may promise.

A running request grows by one token per step and gives its tokens back when it ends, so the peak
lies at one of the endings. Budgeting that peak with estimated lengths uses the memory that summing
every request's own maximum would leave idle.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@njit(cache=True)
def _peak(now_used, remaining, released, extra_remaining, extra_released):  # type: ignore[no-untyped-def]
    """Peak of requests sorted by `remaining`, with one more among them unless extra_remaining < 0.

    With one more, nothing after its end is looked at.
    """
    used = now_used
    peak = now_used
    growing = len(remaining)
    pending = extra_remaining >= 0
    if pending:
        growing += 1
    elapsed = np.int64(0)
    for i in range(len(remaining)):
        if pending and extra_remaining <= remaining[i]:
            break
        used += (remaining[i] - elapsed) * growing
        elapsed = remaining[i]
        peak = max(peak, used)
        used -= released[i] + remaining[i]
        growing -= 1
    if pending:
        peak = max(peak, used + (extra_remaining - elapsed) * growing)
    return peak


@njit(cache=True)
def _longest(now_used, remaining, released, room):  # type: ignore[no-untyped-def]
    """Largest extra_remaining with which `_peak` stays within room; -1 if none does."""
    used = now_used
    if used > room:
        return np.int64(-1)
    growing = len(remaining) + 1
    elapsed = np.int64(0)
    for i in range(len(remaining)):
        if used + (remaining[i] - elapsed) * growing > room:
            break
        used += (remaining[i] - elapsed) * growing - released[i] - remaining[i]
        elapsed = remaining[i]
        growing -= 1
    return elapsed + (room - used) // growing


@njit(cache=True)
def _insert(remaining, released, extra_remaining, extra_released):  # type: ignore[no-untyped-def]
    """Both arrays with one more entry, before equal ones."""
    at = np.searchsorted(remaining, extra_remaining)
    longer = np.empty((2, len(remaining) + 1), np.int64)
    longer[0, :at], longer[1, :at] = remaining[:at], released[:at]
    longer[0, at], longer[1, at] = extra_remaining, extra_released
    longer[0, at + 1 :], longer[1, at + 1 :] = remaining[at:], released[at:]
    return longer[0], longer[1]


class KVForecast:
    """Highest future KV use, in tokens, of the running requests and of those one might add.

    Estimates err: a margin is added to what they say, but never more than what is held if nobody ends at all.

    Args:
        used: tokens held now, shared prefixes counted once.
        remaining: int64 (n,) output tokens that each running request is expected to produce yet.
        released: int64 (n,) tokens that only this request holds now; it frees them, and what it has
            yet to produce, when it ends.
        margin: tokens by which use may turn out higher.

    Two requests hold 100 tokens each; one ends in 10 steps, the other in 50:

    >>> forecast = KVForecast(200, np.array([10, 50]), np.array([100, 100]))
    >>> forecast.peak()
    220
    >>> forecast.peak_with(30, 20)  # before the first ends, three grow
    260
    >>> forecast.longest(30, room=250)  # steps that it may take, to stay within 250 tokens
    6
    """

    def __init__(self, used: int, remaining: Ints, released: Ints, margin: int = 0) -> None:
        order = np.argsort(remaining, kind="stable")
        self._used = used
        self._margin = margin
        self._remaining: Ints = np.asarray(remaining, np.int64)[order]
        self._released: Ints = np.asarray(released, np.int64)[order]

    def __len__(self) -> int:
        return len(self._remaining)

    def peak(self) -> int:
        """Peak if nothing more is admitted, without margin."""
        return int(_peak(self._used, self._remaining, self._released, -1, 0))

    def peak_with(self, new_tokens: int, remaining: int) -> int:
        """Peak until the end of a request that takes `new_tokens` now and produces `remaining` more.

        What comes after it has left is not its doing.
        """
        used = self._used + new_tokens
        peak = int(_peak(used, self._remaining, self._released, remaining, new_tokens))
        return min(peak + self._margin, used + remaining * (len(self) + 1))

    def longest(self, new_tokens: int, room: int) -> int:
        """Largest `remaining` with which `peak_with` stays within `room`; -1 if none does."""
        used = self._used + new_tokens
        longest = int(_longest(used, self._remaining, self._released, room - self._margin))
        return max(longest, (room - used) // (len(self) + 1), -1)

    def add(self, new_tokens: int, remaining: int) -> None:
        """Admit that request."""
        self._remaining, self._released = _insert(self._remaining, self._released, remaining, new_tokens)
        self._used += new_tokens

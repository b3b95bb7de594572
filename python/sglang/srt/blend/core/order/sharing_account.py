"""Sharing that a pool had until now, and what it has lost of it.

Every new plan may cut, and what it cuts off stands at the ends of its order, where requests begin first. If
each had a budget of its own, a pool that is planned forty times could lose many times the share that one
plan may lose.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sharing:
    """Prompt tokens of requests that have begun.

    Attributes:
        kept: found in the cache; lost: computed though a depth-first walk would have found them there.
    """

    kept: int = 0
    lost: int = 0


NOTHING_BEFORE = Sharing()
"""Of the first plan of a pool."""


class SharingAccount:
    """Compares what can be shared, and was, from plan to plan.

    What is missing is lost: prefixes that were cut off, left the cache too early, or belonged to
    requests that gave up.
    """

    def __init__(self) -> None:
        self._possible = self._lost = self._begin = 0
        self._newest = -1

    def before(self, oldest: int, newest: int, cached: int, left: int) -> Sharing:
        """A plan is made; what was before it, of the same pool.

        Args:
            oldest, newest: numbers of the first and the last arrival among its requests.
            cached: prompt tokens that requests have found in the cache, since the first pool.
            left: prompt tokens that its requests can share with each other and with those that run.
        """
        if oldest > self._newest:  # nobody of before waits
            self._begin, self._lost = cached, 0
        kept = cached - self._begin
        if newest > self._newest:  # others have come
            self._newest, self._possible = newest, kept + self._lost + left
        self._lost = max(self._possible - kept - left, 0)
        return Sharing(kept, self._lost)

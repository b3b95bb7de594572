"""A prefix that several requests of one step share is computed by one of them (paper A.2)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple


class PrefixKeys(NamedTuple):
    """What a request would compute first; equal keys mean equal tokens behind the same cached prefix.

    Attributes:
        worth_a_step: of as many tokens as are worth a step's delay; None if it does not go on for that long.
        shortest: of the fewest tokens that can be shared; None where only the long key is looked at.
    """

    worth_a_step: Hashable | None = None
    shortest: Hashable | None = None


NO_PREFIX = PrefixKeys()


class PrefixLeaders:
    """The requests that compute a prefix for others, in this step and the last ones.

    A leader's KV is in the cache when its prefill has been processed: one step later, or two where the
    scheduler works ahead of the device. Nobody waits longer than that, so nobody starves.

    Args:
        lag: steps until a leader's KV can be matched, 1 or more.

    Raises:
        ValueError: the lag is below 1.

    >>> leaders = PrefixLeaders(lag=1)
    >>> leaders.lead(PrefixKeys("few-shot examples"))
    >>> leaders.compute("few-shot examples")
    True
    >>> leaders.next_step()
    >>> leaders.compute("few-shot examples")
    False
    """

    def __init__(self, lag: int = 1) -> None:
        if lag < 1:
            raise ValueError(f"lag {lag}: a leader's KV can be matched one step later at the earliest")
        self._steps: list[set[Hashable]] = [set() for _ in range(lag)]

    def next_step(self) -> None:
        """A new step begins; the oldest leaders' KV can be matched now."""
        self._steps.pop()
        self._steps.insert(0, set())

    def compute(self, key: Hashable | None) -> bool:
        """Whether a leader is computing the prefix with this key."""
        return key is not None and any(key in step for step in self._steps)

    def lead(self, keys: PrefixKeys) -> None:
        """A request of this step computes these prefixes."""
        self._steps[0].update(key for key in keys if key is not None)

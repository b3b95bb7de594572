"""Whether requests come while others run: then the end of what is known is not the end (beyond the paper)."""

from __future__ import annotations

_PAUSES = 2
"""Times the longest pause so far that nobody has to come until nobody else is expected."""


class Stream:
    """Watches arrivals. Time is counted in steps.

    Those who come before anybody runs are a pool, however many they are; who comes beside them is a stream:

    >>> stream = Stream()
    >>> stream.arrived(running=0)
    >>> stream.flows
    False
    >>> for _ in range(10): stream.step()
    >>> stream.arrived(running=4)
    >>> for _ in range(20): stream.step()
    >>> stream.flows
    True
    >>> stream.step()
    >>> stream.flows
    False
    """

    def __init__(self) -> None:
        self._since = self._longest = 0  # steps since somebody came; the longest pause between two of them
        self._beside = False

    def step(self) -> None:
        """A step begins."""
        self._since += 1

    def arrived(self, running: int) -> None:
        """Requests arrive beside so many that run."""
        self._beside = running > 0
        if self._beside:
            self._longest = max(self._longest, self._since)
        self._since = 0

    @property
    def flows(self) -> bool:
        """Whether others are likely to come yet."""
        return self._beside and self._since <= _PAUSES * self._longest

"""Whether requests keep coming while others run: then the end of what waits is no end (beyond the paper)."""

from __future__ import annotations

_MANY = 4
"""One part in so many of those who wait are enough newcomers to change what there is to do."""

_PAUSES = 2
"""Times the longest pause so far without newcomers, until no others are expected."""


class Stream:
    """Watches arrivals. Time is counted in steps.

    Those who come before anybody runs are a pool, however many they are. Many who come beside it are a
    stream; a few are not, since the pool ends when it would have ended without them:

    >>> stream = Stream()
    >>> stream.arrived(8, waiting=8, running=0)
    >>> for _ in range(10): stream.step()
    >>> stream.arrived(1, waiting=8, running=4)
    >>> stream.flows
    False
    >>> stream.arrived(1, waiting=8, running=4)
    >>> for _ in range(20): stream.step()
    >>> stream.flows
    True
    >>> stream.step()
    >>> stream.flows
    False
    """

    def __init__(self) -> None:
        self._came = 0  # fewer than many
        self._since = self._longest = 0  # steps since many came; the longest pause between two times
        self._beside = False

    def step(self) -> None:
        """A step begins."""
        self._since += 1

    def arrived(self, requests: int, *, waiting: int, running: int) -> None:
        """Requests arrive.

        Args:
            waiting: all that wait now; running: that run.
        """
        self._came += requests
        if self._came * _MANY < waiting:
            return
        self._beside = running > 0
        if self._beside:
            self._longest = max(self._longest, self._since)
        self._came = self._since = 0

    @property
    def flows(self) -> bool:
        """Whether many others are likely to come yet."""
        return self._beside and self._since <= _PAUSES * self._longest

"""How many requests a server has at a time: found out by what it does with them.

A window doubles until the server shows its limit for the first time, and grows by a fixed step from then
on: after every round, which is a window's worth of answers. It is halved when the server refuses (429 or
503), once for all requests that were under way then. And it goes back where half as many requests again have
brought hardly more tokens per second: the rest only waits in the server's queue, where no plan reaches it.
"""

from __future__ import annotations

from dataclasses import dataclass

START = 16
"""Requests at first."""

STEPS = 32
"""Steps of growth from nothing to the largest window."""

ROUND = 32
"""Answers that a round has at least."""

WIDER, FASTER = 1.5, 1.1
"""A window that is WIDER times as large has to bring FASTER times the tokens per second."""

HOLD = 8
"""Rounds until a window that was too wide is tried again."""


@dataclass(slots=True)
class Window:
    """The window of one server.

    Attributes:
        largest: requests at most.
        limit: requests now, 1 or more.
        epoch: counts refusals; a request is sent in one, and `refused` wants it back.
        returns: how often the window went back, because it brought nothing.
    """

    largest: int
    limit: int
    epoch: int = 0
    returns: int = 0
    _doubles: bool = True
    _measures: bool = True
    _hold: int = 0
    _settling: bool = True
    _began: float | None = None
    _answers: int = 0
    _tokens: int = 0
    _narrow: tuple[int, float] | None = None

    @classmethod
    def adapting(cls, largest: int) -> Window:
        """Begin small."""
        return cls(largest, min(START, largest))

    @classmethod
    def whole(cls, largest: int) -> Window:
        """Begin as large as may be, for a server that is to see everything that waits."""
        return cls(largest, largest, _doubles=False, _measures=False)

    def answered(self, tokens: int, *, now: float, full: bool) -> None:
        """Count an answer.

        Args:
            tokens: in and out, 0 where unknown.
            now: seconds of a clock that only goes forward.
            full: whether the window was full; one that is not used tells nothing and does not grow.
        """
        if not full or self._began is None:
            self._began = now if full else None
            self._answers = self._tokens = 0
            return
        self._answers += 1
        self._tokens += max(tokens, 1)
        if self._answers >= max(ROUND, self.limit):
            self._end_round(self._tokens / max(now - self._began, 1e-9))
            self._began, self._answers, self._tokens = now, 0, 0

    def refused(self, epoch: int) -> bool:
        """Halve the window: the server was asked for too much. Returns whether that is news.

        Args:
            epoch: the window's when the request was sent; it is halved once for all that were sent before.
        """
        if epoch != self.epoch:
            return False
        self.epoch += 1
        self._doubles = False
        self._narrow = None
        self._resize(max(self.limit // 2, 1))
        return True

    def _end_round(self, rate: float) -> None:
        if self._settling:  # half of its answers are those of the window before
            self._settling = False
            return
        self._hold = max(self._hold - 1, 0)
        if self._hold:
            return
        if self._measures and self._narrow is not None and self.limit >= WIDER * self._narrow[0]:
            if rate < FASTER * self._narrow[1]:
                self.returns += 1
                self._doubles, self._hold = False, HOLD
                self._resize(self._narrow[0])
                self._narrow = None
                return
            self._narrow = self.limit, rate
        self._narrow = self._narrow or (self.limit, rate)
        grown = 2 * self.limit if self._doubles else self.limit + max(self.largest // STEPS, 1)
        self._resize(min(grown, self.largest))

    def _resize(self, limit: int) -> None:
        self._settling = limit != self.limit
        self.limit = limit
        self._began = None

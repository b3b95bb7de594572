"""Which batches are open: so many at a time, for each has files and a place in the engine's queue.

A batch whose window is at risk is opened first, then one of the key that has the fewest open, by weight; of
these the oldest. Neither waits for batches of which all places are taken, but for a second such number.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sglang.batch.run.stops import Stopped, Stops
from sglang.batch.serve.admission import BatchWork, aim, at_risk
from sglang.batch.serve.pace import Costs
from sglang.batch.serve.room import Room, Terms

AT_A_TIME = 64
"""Batches that are open at a time, and as many more of those that cannot wait."""


@dataclass(eq=False)
class _Waiting:
    terms: Terms
    lines: int
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def work(self, line_seconds: float) -> BatchWork:
        terms = self.terms
        end = aim(terms.begin, terms.deadline)
        return BatchWork(terms.key, terms.weight, terms.deadline, end, line_seconds * self.lines)


class Turns:
    """Batches that are open, and those that wait to be.

    Args:
        room: knows what is left of those that are open.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._open: Counter[str] = Counter()
        self._waiting: list[_Waiting] = []

    @asynccontextmanager
    async def turn(self, terms: Terms, lines: int, stops: Stops) -> AsyncIterator[None]:
        """Wait until a batch may be open; one that is only to be closed does not wait.

        Args:
            lines: of it.
            stops: end the wait.
        """
        waiting = _Waiting(terms, lines)
        self._waiting.append(waiting)
        self._look()
        try:
            await stops.race(_until(waiting.turn))
        except Stopped:
            pass
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
        try:
            yield
        finally:
            if waiting.turn.done() and not waiting.turn.cancelled():
                self._open[terms.key] -= 1
                self._look()

    def _look(self) -> None:
        while (chosen := self._next()) is not None:
            self._waiting.remove(chosen)
            self._open[chosen.terms.key] += 1
            chosen.turn.set_result(None)

    def _next(self) -> _Waiting | None:
        """Find who is next, if there is a place for them."""
        waiting = [one for one in self._waiting if not one.turn.done()]
        if not waiting:
            return None
        unit = self._room.pace.line_seconds(Costs())
        works = [*(one.work(unit) for one in waiting), *self._room.works().values()]
        late = [i for i in at_risk(works, self._room.now(), sure=self._room.pace.sure) if i < len(waiting)]
        chosen = waiting[late[0]] if late else min(waiting, key=self._had)
        cannot_wait = bool(late) or not self._open[chosen.terms.key]
        return chosen if self._open.total() < AT_A_TIME * (1 + cannot_wait) else None

    def _had(self, one: _Waiting) -> float:
        return self._open[one.terms.key] / one.terms.weight


async def _until(turn: asyncio.Future[None]) -> None:
    await turn

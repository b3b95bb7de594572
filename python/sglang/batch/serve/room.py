"""The engine's places: which batch's next line gets one, and whether that line goes ahead of others.

`admission` decides, about once a second; between, each batch that is hurried has a credit, in seconds of
work, that grows with its share of the engine; its lines go in the order of their prompts, so that they share
what they begin with though they come one by one. Where places are short, keys take turns by what they had.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sglang.batch.serve.admission import BatchWork, admit, aim
from sglang.batch.serve.pace import Costs, Pace
from sglang.batch.serve.waiting import Waiting

TICK = 1.0
"""Seconds between two decisions."""

BUSY = 256
"""Lines that the engine has in any case, as far as there are any, so that no decision leaves it idle."""

CREDIT = 2.0
"""Seconds for which credit is kept at most."""

FADES = 0.99
"""What is left of the longest time that a hurried line took, with each one after it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a batch is run.

    Attributes:
        key: whose it is.
        weight: of its priority.
        begin, deadline: of its window, in seconds of the room's clock.
    """

    key: str
    weight: float
    begin: float
    deadline: float


@dataclass(eq=False)
class Seat:
    """A batch in the room.

    Attributes:
        lines_left: counts its lines without a record, those in the engine among them.
        free, hurried: lines in the engine.
        latency: seconds that hurried lines take lately, at most.
        share: of the engine, see `Admission`.
        credit: seconds of work that it may be given ahead of others.
        had: seconds of work that it was given, by weight.
    """

    terms: Terms
    lines_left: Callable[[], int]
    costs: Costs = field(default_factory=Costs)
    waiting: Waiting = field(default_factory=Waiting)
    free: int = 0
    hurried: int = 0
    latency: float = 0.0
    share: float = 0.0
    credit: float = 0.0
    had: float = 0.0
    line_seconds: float = 0.0

    def work(self) -> BatchWork:
        """What is left of it, in seconds of the whole engine."""
        terms, unit = self.terms, self.line_seconds
        return BatchWork(
            key=terms.key,
            weight=terms.weight,
            deadline=terms.deadline,
            aim=aim(terms.begin, terms.deadline) - self.latency,
            waiting=unit * max(self.lines_left() - self.free - self.hurried, 0),
            free=unit * self.free,
            hurried=unit * self.hurried,
            known=self.costs.known,
        )


@dataclass
class Place:
    """A line's place in the engine.

    Attributes:
        hurried: whether it goes ahead of those that are not.
        cost: what it cost, see `pace.line_cost`; to be said by whoever had it.
    """

    hurried: bool
    cost: float | None = None


class Room:
    """The places of an engine.

    Args:
        places: lines in the engine at most.
        clock: tells seconds.
    """

    def __init__(self, places: int, *, clock: Callable[[], float] = time.time) -> None:
        self._places = places
        self._clock = clock
        self._taken = 0
        self._seats: dict[Seat, None] = {}
        self._pace = Pace(clock())
        self._decided, self._changed = clock(), True
        self._room = 0.0
        self._key_had: dict[str, float] = defaultdict(float)
        self._had = 0.0  # of the key that was given work last: who comes back has no claim from before
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, terms: Terms, lines_left: Callable[[], int], costs: Costs | None = None) -> Seat:
        """Let a batch in."""
        seat = Seat(terms, lines_left, costs or Costs())
        if not any(other.terms.key == terms.key for other in self._seats):
            self._key_had[terms.key] = max(self._key_had[terms.key], self._had)
        seat.had = min((other.had for other in self._seats if other.terms.key == terms.key), default=0.0)
        self._seats[seat] = None
        self._changed = True
        return seat

    def leave(self, seat: Seat) -> None:
        """Let a batch out, none of whose lines waits."""
        self._seats.pop(seat, None)
        self._changed = True
        self.look()

    def works(self) -> dict[Seat, BatchWork]:
        """What is left of all batches, in seconds of the whole engine."""
        for seat in self._seats:
            seat.line_seconds = self._pace.line_seconds(seat.costs)
        return {seat: seat.work() for seat in self._seats}

    def modelled(self, seconds: float, lines: int) -> None:
        """Hear from the engine how long it will take for what it has.

        Args:
            lines: that it knows of, some of which may still be on their way.
        """
        cost = sum(
            (seat.free + seat.hurried) * (self._pace.line_cost(seat.costs) or 0.0) for seat in self._seats
        )
        if cost > 0.0 and seconds > 0.0 and lines > 0:
            self._pace.modelled = cost * min(lines / self._taken, 1.0) / seconds

    def now(self) -> float:
        """Tell the time, in seconds of the clock of all terms."""
        return self._clock()

    @property
    def pace(self) -> Pace:
        """The engine's speed."""
        return self._pace

    @asynccontextmanager
    async def place(self, seat: Seat, order: tuple[str, ...] = ()) -> AsyncIterator[Place]:
        """Wait for a place for a line, and hold it.

        Args:
            order: see `prompt_order`.
        """
        turn = seat.waiting.add(order)
        self.look()
        try:
            place = Place(await turn)
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._give_back(seat, turn.result())
            raise
        began = self._clock()
        try:
            yield place
        finally:
            if place.cost is not None:
                seat.costs.note(place.cost)
                self._pace.note(place.cost)
                if place.hurried:
                    seat.latency = max(FADES * seat.latency, self._clock() - began)
            self._give_back(seat, place.hurried)

    def _give_back(self, seat: Seat, hurried: bool) -> None:
        self._taken -= 1
        if hurried:
            seat.hurried -= 1
        else:
            seat.free -= 1
        self.look()

    def look(self) -> None:
        """Give places to lines that wait, as far as they are to have any now."""
        now = self._clock()
        if self._changed or now >= self._decided + TICK:
            self._decide(now)
        while self._taken < self._places and (chosen := self._choose()) is not None:
            self._give(*chosen)
        self._pace.look(now, running=self._taken > 0)
        waits = any(seat.waiting for seat in self._seats)
        if waits and self._taken < self._places and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._again)

    def _again(self) -> None:
        self._timer = None
        self.look()

    def _decide(self, now: float) -> None:
        works = self.works()
        admission = admit(list(works.values()), now, sure=self._pace.sure)
        elapsed = min(max(now - self._decided, 0.0), CREDIT)
        for seat, share in zip(works, admission.shares, strict=True):
            seconds = TICK if seat.share == 0.0 else elapsed
            if share > 0.0 and seconds > 0.0:
                seat.credit = min(seat.credit + share * seconds, share * CREDIT)
            seat.share = share
        self._room, self._decided, self._changed = admission.room, now, False

    def _choose(self) -> tuple[Seat, bool] | None:
        """Find whose line is next, and whether it is hurried."""
        waiting = [seat for seat in self._seats if seat.waiting]
        hurried = [seat for seat in waiting if seat.share > 0.0]
        free = [seat for seat in waiting if seat.share == 0.0]
        due = [seat for seat in hurried if seat.credit > 0.0]
        if due:
            return min(due, key=lambda seat: seat.terms.deadline), True
        if free and self._room > 0.0:
            return min(free, key=self._turn), False
        if self._taken < BUSY:
            if hurried:
                return min(hurried, key=lambda seat: seat.terms.deadline), True
            if free:
                return min(free, key=self._turn), False
        return None

    def _turn(self, seat: Seat) -> tuple[float, float]:
        return self._key_had[seat.terms.key], seat.had

    def _give(self, seat: Seat, hurried: bool) -> None:
        seat.waiting.give(hurried=hurried)
        work = seat.line_seconds
        self._taken += 1
        if hurried:
            seat.hurried += 1
            seat.credit = max(seat.credit - work, -work)
        else:
            seat.free += 1
            self._room -= work
        key = seat.terms.key
        seat.had += work / seat.terms.weight
        self._had = self._key_had[key]
        self._key_had[key] += work / seat.terms.weight

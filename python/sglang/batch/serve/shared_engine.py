"""One engine for all jobs: started when somebody needs it, started again when it has died.

Each job sees an engine of its own and has its own `Rounds`. What concerns them all is decided here: the
engine is started once for all, deaths are counted over all, and each job hears of those suspects only that
are its own. A job that runs lines by themselves, of which the engine may die, gets it for itself meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, NoReturn, cast

from sglang.batch.records import Answer, BatchRequest
from sglang.batch.run.barrier import Barrier, NoBarrier
from sglang.batch.run.blend_history import BlendState
from sglang.batch.run.engine.protocol import Engine, EngineDied, EngineFailed
from sglang.batch.run.engine.restarts import Restarts
from sglang.batch.run.eta import ModelledEta
from sglang.batch.run.run_progress import pool_state
from sglang.batch.serve.pace import Costs, line_cost
from sglang.batch.serve.room import Place, Room, Seat, Terms
from sglang.batch.serve.waiting import prompt_order

LOOK = 0.05
"""Seconds between two looks whether the others' requests have ended."""

WATCH = 5.0
"""Seconds between two looks at what the engine has left."""

FREE, HURRIED = 0, 1
"""Priorities of lines in the engine."""

WITH_PRIORITY = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/classify")
"""Endpoints whose requests SGLang lets have a priority."""


class Busy(Exception):
    """The engine takes no request at once: it starts, or one job has it for itself."""


class SharedEngine:
    """An engine that several jobs use.

    Args:
        engine: not started yet.
        alive: tells whether it lives, as far as anybody knows.
        room: its places.
        priorities: whether it takes requests of a higher priority first.
        restarts: deaths in a row, without an answer between, that are put up with.
        say: tells the operator.

    Attributes:
        failed: completed with the reason when the engine cannot be had any more.
        room: where lines wait for it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        alive: Callable[[], bool],
        room: Room,
        priorities: bool = False,
        restarts: int,
        say: Callable[[str], object],
    ) -> None:
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._engine = engine
        self._alive = alive
        self._say = say
        self.room = room
        self._priorities = priorities
        self._restarts = Restarts(restarts)
        self._attempt: asyncio.Future[None] | None = None
        self._started = self._up = False
        self._last = "the engine died"
        self._answered = 0
        self._modelled = ModelledEta()
        self._running: dict[str, JobEngine | None] = {}
        self._death: tuple[EngineDied, dict[str, JobEngine | None]] | None = None
        self._sole: JobEngine | None = None
        self._exclusive = asyncio.Lock()
        self._opened = asyncio.Event()
        self._opened.set()

    def for_job(self, terms: Terms, lines_left: Callable[[], int], costs: Costs | None = None) -> JobEngine:
        """Make what one job takes for its engine, and leaves at its end; see `Room.enter`."""
        return JobEngine(self, self.room.enter(terms, lines_left, costs))

    @property
    def is_up(self) -> bool:
        """Whether it is up, as far as anybody knows."""
        return self._up and self._alive()

    async def up(self) -> None:
        """Return when the engine is up: at once, unless it was never started or has died.

        Raises:
            EngineFailed: it cannot be started, or has died too often.
        """
        while not self.is_up:
            if self._attempt is None or self._attempt.done():
                self._attempt = asyncio.ensure_future(self._start())
            # Whoever gives up waiting is not the only one who waits.
            await asyncio.shield(self._attempt)

    async def watch(self) -> None:
        """Ask the engine's scheduler every now and then how long it will take; end if it does not know."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(WATCH)
            with contextlib.suppress(EngineDied):
                if self.is_up and not await self.ask(time.monotonic() - began):
                    return

    async def ask(self, seconds: float) -> bool:
        """Ask the engine's scheduler how long it will take for what it has, and tell the room.

        Args:
            seconds: of a clock that only goes forward.

        Returns:
            Whether it is one that knows.

        Raises:
            EngineDied: nobody is there.
        """
        blend = (await self._engine.internal_state())[0].get("blend")
        if not isinstance(blend, dict):
            return False
        if (state := pool_state(cast(BlendState, blend))) is not None:
            self._modelled.observe(seconds, state)
            eta = self._modelled.eta(seconds, submitted=1, beyond=0)
            self.room.modelled(
                state.left if eta is None else eta.seconds, blend["waiting"] + blend["running"]
            )
        return True

    async def _start(self) -> None:
        """Try to start it, after a while if it has died or could not be started again."""
        if self.failed.done():
            raise EngineFailed(self.failed.result())
        if self._started:
            self._up = False
            wait = self._restarts.died(self._answered)
            if wait is None:
                self._give_up(f"{self._last}; that was too often")
            self._say(f"{self._last}: starting it again in {wait:g} s")
            await asyncio.sleep(wait)
        try:
            await self._engine.start()
        except EngineFailed as error:
            self._last = str(error)
            if not self._started:
                self._give_up(self._last)
        except Exception as error:
            self._give_up(f"the engine cannot be started: {type(error).__name__}: {error}")
        else:
            self._started = self._up = True
            self._death, self._last = None, "the engine died"

    def _give_up(self, reason: str) -> NoReturn:
        self.failed.set_result(reason)
        raise EngineFailed(reason)

    async def stop(self) -> None:
        """Stop the engine."""
        self._up = False
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait({self._attempt})
        await self._engine.stop()

    async def answer(self, job: JobEngine, request: BatchRequest, request_id: str) -> Answer:
        """Run a request when there is room, and no other job has the engine for itself.

        Raises:
            EngineDied: the request may be run again; suspects are those of the job.
        """
        while True:
            while self._sole not in (None, job):
                await self._opened.wait()
            async with self.room.place(job.seat, prompt_order(request.body)) as place:
                try:
                    await self.up()
                except EngineFailed as error:
                    raise EngineDied(str(error), suspects=frozenset()) from error
                if self._sole in (None, job):
                    if self._priorities and request.url in WITH_PRIORITY:
                        priority = HURRIED if place.hurried else FREE
                        request = replace(request, body={**request.body, "priority": priority})
                    return await self._run(job, request, request_id, place)

    async def at_once(self, request_id: str, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """Run something of no job, which waits for nobody and takes none of the room.

        Args:
            work: lets the engine run it.

        Raises:
            Busy: it cannot be run now.
            EngineDied: suspects are those of no job.
        """
        if not self.is_up or self._sole is not None:
            raise Busy
        self._running[request_id] = None
        try:
            answer = await work()
        except EngineDied as died:
            raise self._told(died, None) from died
        finally:
            self._running.pop(request_id, None)
        self._answered += 1
        return answer

    async def _run(self, job: JobEngine, request: BatchRequest, request_id: str, place: Place) -> Answer:
        self._running[request_id] = job
        try:
            answer = await self._engine.answer(request, request_id)
        except EngineDied as died:
            raise self._told(died, job) from died
        finally:
            self._running.pop(request_id, None)
        self._answered += 1
        place.cost = line_cost(answer.usage)
        return answer

    def _told(self, died: EngineDied, job: JobEngine | None) -> EngineDied:
        """Say of a death what concerns a job; the first who hears of it notes what was running."""
        self._up, self._last = False, str(died)
        if self._death is None or self._death[0] is not died:
            running = dict(self._running)
            known = running if died.suspects is None else died.suspects & running.keys()
            nobody = died.suspects is not None and not died.suspects
            # A recording that names none of these is of an earlier time.
            blamed = {} if nobody else {id: running[id] for id in known or running}
            self._death = died, blamed
        mine = frozenset(id for id, whose in self._death[1].items() if whose is job)
        return EngineDied(str(died), suspects=mine)

    @asynccontextmanager
    async def alone(self, job: JobEngine) -> AsyncIterator[None]:
        """Hold the engine for one job: wait until nothing of others runs, and let nothing of them begin."""
        async with self._exclusive:
            self._sole = job
            self._opened.clear()
            try:
                while any(whose is not job for whose in self._running.values()):
                    await asyncio.sleep(LOOK)
                yield
            finally:
                self._sole = None
                self._opened.set()


class JobEngine:
    """What one job sees of the engine.

    Args:
        shared: the engine.
        seat: the job's, where its lines wait.
    """

    def __init__(self, shared: SharedEngine, seat: Seat) -> None:
        self._shared = shared
        self.seat = seat

    def leave(self) -> None:
        """Let others have what this job had of the engine."""
        self._shared.room.leave(self.seat)

    async def start(self) -> None:
        """Return when the engine is up, whoever has started it.

        Raises:
            EngineFailed: it cannot be had any more.
        """
        await self._shared.up()

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run one request to its end; see `SharedEngine.answer`."""
        return await self._shared.answer(self, request, request_id)

    def alone(self) -> AbstractAsyncContextManager[None]:
        """Hold the engine for this job."""
        return self._shared.alone(self)

    def barrier(self) -> Barrier:
        """Hold nothing: one job's barrier would hold all jobs."""
        return NoBarrier()

    async def internal_state(self) -> list[dict[str, Any]]:
        """Say nothing: the schedulers' states are no job's own."""
        return [{}]

    async def stop(self) -> None:
        """Leave the engine to the others."""

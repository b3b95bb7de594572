"""One engine for all jobs: started when somebody needs it, started again when it has died.

Each job sees an engine of its own and has its own `Rounds`. What concerns them all is decided here: the
engine is started once for all, deaths are counted over all, and each job hears of those suspects only that
are its own. A job that runs lines by themselves, of which the engine may die, gets it for itself meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NoReturn

from sglang.batch.records import Answer, BatchRequest
from sglang.batch.run.barrier import Barrier, NoBarrier
from sglang.batch.run.engine.protocol import Engine, EngineDied, EngineFailed
from sglang.batch.run.engine.restarts import Restarts

LOOK = 0.05
"""Seconds between two looks whether the others' requests have ended."""


class Busy(Exception):
    """The engine takes no request at once: it starts, or one job has it for itself."""


class SharedEngine:
    """An engine that several jobs use.

    Args:
        engine: not started yet.
        alive: tells whether it lives, as far as anybody knows.
        pool: requests in flight at most, of all jobs together.
        restarts: deaths in a row, without an answer between, that are put up with.
        say: tells the operator.

    Attributes:
        failed: completed with the reason when the engine cannot be had any more.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        alive: Callable[[], bool],
        pool: int,
        restarts: int,
        say: Callable[[str], object],
    ) -> None:
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._engine = engine
        self._alive = alive
        self._say = say
        self._room = asyncio.Semaphore(pool)
        self._restarts = Restarts(restarts)
        self._attempt: asyncio.Future[None] | None = None
        self._started = self._up = False
        self._last = "the engine died"
        self._answered = 0
        self._running: dict[str, JobEngine | None] = {}
        self._death: tuple[EngineDied, dict[str, JobEngine | None]] | None = None
        self._sole: JobEngine | None = None
        self._exclusive = asyncio.Lock()
        self._opened = asyncio.Event()
        self._opened.set()

    def for_job(self) -> JobEngine:
        """Make what one job takes for its engine."""
        return JobEngine(self)

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
            async with self._room:
                try:
                    await self.up()
                except EngineFailed as error:
                    raise EngineDied(str(error), suspects=frozenset()) from error
                if self._sole in (None, job):
                    return await self._run(job, request, request_id)

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

    async def _run(self, job: JobEngine, request: BatchRequest, request_id: str) -> Answer:
        self._running[request_id] = job
        try:
            answer = await self._engine.answer(request, request_id)
        except EngineDied as died:
            raise self._told(died, job) from died
        finally:
            self._running.pop(request_id, None)
        self._answered += 1
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
    """

    def __init__(self, shared: SharedEngine) -> None:
        self._shared = shared

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

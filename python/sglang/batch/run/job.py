"""The life of a batch: lines that have no record yet in, requests running, one record per line committed.

Records are committed in the order in which requests finish; `custom_id` tells whose they are. In memory are
the requests in flight, at most `pool` of them, each until its record is on the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from sglang.batch import records
from sglang.batch.records import Answer, BatchFailure, BatchRequest, Usage
from sglang.batch.run.barrier import Barrier, NoBarrier
from sglang.batch.run.committer import Committer, Finished
from sglang.batch.run.engine.protocol import EngineDied
from sglang.batch.run.give_way import give_way
from sglang.batch.run.recovery import Work
from sglang.batch.run.tally import Tally


class Answerer(Protocol):
    """Whoever runs requests: of an engine, what a job needs."""

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run one request to its end; see `engine.protocol.Engine`."""


class BatchJob:
    """Runs the open lines of one batch.

    Args:
        engine: runs one request.
        committer: writes records.
        tally: counts what is done, the work of earlier runs in it already.
        pool: requests in flight at most, which is how many the planner sees at a time.
        barrier: holds admissions until the first pool is complete; None holds nothing.
    """

    def __init__(
        self,
        engine: Answerer,
        committer: Callable[[Callable[[Finished], object]], Committer],
        *,
        tally: Tally,
        pool: int,
        barrier: Barrier | None = None,
    ) -> None:
        self.tally = tally
        self.committer = committer(self._committed)
        self._engine = engine
        self._room = asyncio.Semaphore(pool)
        self._barrier = barrier or NoBarrier()
        self._barrier_open = False
        self._in_flight: dict[str, int] = {}
        self._lost: dict[str, int] = {}
        self._feeding: asyncio.Future[None] | None = None
        self._stopped = False

    async def run(self, work: Iterable[Work]) -> None:
        """Run every line; returns when each has its record on the disk.

        Cancelling drops what is in flight; what was handed to the committer is committed.

        Raises:
            ExceptionGroup: of `DiskFailed`, `EngineDied`, and of what `work` raised.
        """
        self.tally.started = self.tally.started or time.monotonic()
        self._closed = time.monotonic()
        try:
            await self._barrier.close()
            async with asyncio.TaskGroup() as group:
                self._feeding = asyncio.ensure_future(self._feed(work, group))
                try:
                    await self._feeding
                    await self._open_barrier()
                except asyncio.CancelledError:
                    if not self._stopped:
                        raise
                    await self._open_barrier()
                except EngineDied:
                    self._note_lost()
                    raise
        finally:
            self._clock()
            with contextlib.suppress(EngineDied):
                await self._barrier.open()

    def stop(self) -> None:
        """Submit no more; `run` returns when what is in flight has its records."""
        self._stopped = True
        if self._feeding is not None:
            self._feeding.cancel()

    def suspects(self, died: EngineDied) -> list[int]:
        """List the positions of the lines that may be why the engine died.

        These are the ones that its scheduler was working on; all that were in flight where nobody knows.
        """
        lost, suspects = self._lost, died.suspects
        if suspects is not None and not suspects:
            return []
        known = [position for request_id, position in lost.items() if request_id in (suspects or ())]
        return sorted(known or lost.values())

    async def _feed(self, work: Iterable[Work], group: asyncio.TaskGroup) -> None:
        """Start each line as soon as there is room for it; a pool that is full is complete."""
        for count, item in enumerate(work, start=1):
            await self.committer.open.wait()
            if self._room.locked():
                await self._open_barrier()
            await self._room.acquire()
            request_id = secrets.token_hex(16)
            if isinstance(item.item, BatchRequest):
                self._in_flight[request_id] = item.position
            group.create_task(self._run(item, request_id))
            await give_way(count)

    async def _run(self, work: Work, request_id: str) -> None:
        try:
            await self.committer.commit(await self._finish(work, request_id))
        finally:
            self._room.release()

    async def _finish(self, work: Work, request_id: str) -> Finished:
        item = work.item
        if isinstance(item, BatchRequest):
            try:
                answer = await self._engine.answer(item, request_id)
            except EngineDied:
                self._note_lost()
                raise
            except Exception as error:
                item = BatchFailure.internal(item, error)
            else:
                record = records.answer_record(item, answer, file=work.file)
                return Finished(work.position, record, answer.code, answer.usage)
            finally:
                self._in_flight.pop(request_id, None)
        return Finished(work.position, records.failure_record(item, file=work.file), item.code, Usage())

    def _note_lost(self) -> None:
        """Note what was in flight when the engine died, the first time that anybody hears of it."""
        self._lost = self._lost or dict(self._in_flight)

    async def _open_barrier(self) -> None:
        """Let the scheduler admit once all that was submitted is there; only the first call does anything."""
        if not self._barrier_open:
            self._barrier_open = True
            await asyncio.sleep(0)  # until those that were started last are with the engine
            await self._barrier.settle(self._in_flight, tuple(self._in_flight))
            await self._barrier.open()
            self.tally.barrier_seconds += time.monotonic() - self._closed

    def _committed(self, finished: Finished) -> None:
        self.tally.add(finished.code, finished.usage, finished.spared)
        self._clock()

    def _clock(self) -> None:
        """Bring the tally's seconds up to date."""
        self.tally.seconds = time.monotonic() - self.tally.started

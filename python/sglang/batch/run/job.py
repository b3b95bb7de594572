"""The life of a batch: lines that have no record yet in, requests running, one record per line committed.

Records are committed in the order in which requests finish; `custom_id` tells whose they are. In memory are
the requests in flight, at most `pool` of them, each until its record is on the disk.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Protocol

from sglang.batch import records
from sglang.batch.records import Answer, BatchFailure, BatchRequest, Usage
from sglang.batch.run.barrier import Barrier, NoBarrier
from sglang.batch.run.committer import Committer, Finished
from sglang.batch.run.recovery import Work
from sglang.batch.run.tally import Tally


class Engine(Protocol):
    """Whoever runs requests."""

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run one request to its end; what this raises becomes the request's error record.

        Args:
            request_id: unique among the requests of a run.

        Raises:
            EngineDied: the request may be run again by another engine; this ends the job.
        """


class EngineDied(Exception):
    """The engine is gone: no fault of the line that ran, which stays pending."""


class BatchJob:
    """Runs the open lines of one batch.

    Args:
        engine: runs one request.
        committer: writes records.
        tally: counts what is done, the work of earlier runs in it already.
        pool: requests in flight at most, which is how many the planner sees at a time.
        barrier: holds admissions until the first pool is complete; None holds nothing.
        on_record: called after each record, for a progress bar.
    """

    def __init__(
        self,
        engine: Engine,
        committer: Callable[[Callable[[Finished], object]], Committer],
        *,
        tally: Tally,
        pool: int,
        barrier: Barrier | None = None,
        on_record: Callable[[Tally], object] = lambda tally: None,
    ) -> None:
        self.tally = tally
        self.committer = committer(self._committed)
        self._engine = engine
        self._room = asyncio.Semaphore(pool)
        self._barrier = barrier or NoBarrier()
        self._barrier_open = False
        self._on_record = on_record
        self._in_flight: set[str] = set()
        self._started = 0.0
        self._feeding: asyncio.Future[None] | None = None
        self._stopped = False

    async def run(self, work: Iterable[Work]) -> None:
        """Run every line; returns when each has its record on the disk.

        Cancelling drops what is in flight; what was handed to the committer is committed.

        Raises:
            ExceptionGroup: of `DiskFailed`, `EngineDied`, and of what `work` raised.
        """
        self._started = time.monotonic()
        await self._barrier.close()
        try:
            async with asyncio.TaskGroup() as group:
                self._feeding = asyncio.ensure_future(self._feed(work, group))
                try:
                    await self._feeding
                except asyncio.CancelledError:
                    if not self._stopped:
                        raise
                await self._open_barrier()
        finally:
            self._clock()
            await self._barrier.open()

    def stop(self) -> None:
        """Submit no more; `run` returns when what is in flight has its records."""
        self._stopped = True
        if self._feeding is not None:
            self._feeding.cancel()

    async def _feed(self, work: Iterable[Work], group: asyncio.TaskGroup) -> None:
        """Start each line as soon as there is room for it; a pool that is full is complete."""
        for item in work:
            await self.committer.open.wait()
            if self._room.locked():
                await self._open_barrier()
            await self._room.acquire()
            request_id = uuid.uuid4().hex
            if isinstance(item.item, BatchRequest):
                self._in_flight.add(request_id)
            group.create_task(self._run(item, request_id))
            await asyncio.sleep(0)

    async def _run(self, work: Work, request_id: str) -> None:
        try:
            await self.committer.commit(await self._finish(work, request_id))
        finally:
            self._in_flight.discard(request_id)
            self._room.release()

    async def _finish(self, work: Work, request_id: str) -> Finished:
        item = work.item
        if isinstance(item, BatchRequest):
            try:
                answer = await self._engine.answer(item, request_id)
            except EngineDied:
                raise
            except Exception as error:
                item = BatchFailure.internal(item, error)
            else:
                record = records.answer_record(item, answer, file=work.file)
                return Finished(work.position, record, answer.code, answer.usage)
        return Finished(work.position, records.failure_record(item, file=work.file), item.code, Usage())

    async def _open_barrier(self) -> None:
        """Let the scheduler admit once all that was submitted is there; only the first call does anything."""
        if not self._barrier_open:
            self._barrier_open = True
            await self._barrier.settle(self._in_flight, tuple(self._in_flight))
            await self._barrier.open()
            self.tally.barrier_seconds = time.monotonic() - self._started

    def _committed(self, finished: Finished) -> None:
        self.tally.add(finished.code, finished.usage, finished.spared)
        self._clock()

    def _clock(self) -> None:
        """Bring the tally's seconds up to date and show it."""
        self.tally.seconds = time.monotonic() - self._started
        self._on_record(self.tally)

"""The life of a batch: lines in, requests running, one record out per line, written as it is ready.

Records leave in the order in which they finish (OpenAI's batches do the same; `custom_id` tells whose
they are), each written and flushed on its own: what was answered survives a crash, and no response is
kept. What is kept is one id per line seen, to notice duplicates (about 120 bytes a line), and the
requests in flight, at most `pool` of them.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from sglang.batch import records
from sglang.batch.input.lines import Line
from sglang.batch.records import Answer, BatchFailure, BatchRequest, Usage
from sglang.batch.run.barrier import Barrier, NoBarrier
from sglang.batch.run.tally import Tally


class Answerer(Protocol):
    """Whoever runs requests."""

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run one request to its end; what this raises becomes the request's error record.

        Args:
            request_id: unique among the requests of a run.
        """


class BatchJob:
    """Runs the lines of one batch.

    Args:
        answerer: runs one request.
        write: takes one finished output line; its errors end the job.
        pool: requests in flight at most, which is how many the planner sees at a time.
        barrier: holds admissions until the first pool is complete; None holds nothing.
        on_record: called after each record, for a progress bar.
    """

    def __init__(
        self,
        answerer: Answerer,
        write: Callable[[bytes], object],
        *,
        pool: int,
        barrier: Barrier | None = None,
        on_record: Callable[[Tally], object] = lambda tally: None,
    ) -> None:
        self.tally = Tally()
        self._answerer = answerer
        self._write = write
        self._room = asyncio.Semaphore(pool)
        self._barrier = barrier or NoBarrier()
        self._barrier_open = False
        self._on_record = on_record
        self._in_flight: set[str] = set()
        self._started = 0.0

    async def run(self, lines: Iterable[Line]) -> None:
        """Run every line; returns when each has its record.

        Cancelling drops what is in flight and leaves the records written so far.

        Raises:
            ExceptionGroup: of what `write` raised.
        """
        self._started = time.monotonic()
        await self._barrier.close()
        try:
            async with asyncio.TaskGroup() as group:
                for item in records.parse_lines(self._counted(lines)):
                    if isinstance(item, BatchFailure):
                        self._record_failure(item)
                    else:
                        await self._submit(item, group)
                    await asyncio.sleep(0)
                await self._open_barrier()
        finally:
            self._clock()
            await self._barrier.open()

    def _counted(self, lines: Iterable[Line]) -> Iterator[Line]:
        for line in lines:
            self.tally.lines += 1
            yield line

    async def _submit(self, request: BatchRequest, group: asyncio.TaskGroup) -> None:
        """Start a request as soon as there is room for it; a pool that is full is complete."""
        if self._room.locked():
            await self._open_barrier()
        await self._room.acquire()
        request_id = uuid.uuid4().hex
        self._in_flight.add(request_id)
        group.create_task(self._run(request, request_id))

    async def _run(self, request: BatchRequest, request_id: str) -> None:
        try:
            try:
                answer = await self._answerer.answer(request, request_id)
            except Exception as error:
                self._record_failure(BatchFailure.internal(request, error))
            else:
                self._record_answer(request, answer)
        finally:
            self._in_flight.discard(request_id)
            self._room.release()

    async def _open_barrier(self) -> None:
        """Let the scheduler admit once all that was submitted is there; only the first call does anything."""
        if not self._barrier_open:
            self._barrier_open = True
            await self._barrier.settle(self._in_flight, tuple(self._in_flight))
            await self._barrier.open()
            self.tally.barrier_seconds = time.monotonic() - self._started

    def _record_failure(self, failure: BatchFailure) -> None:
        self._write(records.failure_record(failure))
        self.tally.add(failure.code, Usage())
        self._clock()

    def _record_answer(self, request: BatchRequest, answer: Answer) -> None:
        self._write(records.answer_record(request, answer))
        self.tally.add(answer.code, answer.usage)
        self._clock()

    def _clock(self) -> None:
        """Bring the tally's seconds up to date and show it."""
        self.tally.seconds = time.monotonic() - self._started
        self._on_record(self.tally)

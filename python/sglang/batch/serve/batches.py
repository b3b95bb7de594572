"""Batches are carried out: each is a job of `sglang.batch.run` in its folder, all on one engine.

A batch's state is in the store before anything that follows from it is done, and what is done can be done
again: killed at any moment, the next start looks at the state, opens the job, whose journal says what is
left, and goes on.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from sglang.batch.media import MediaGate, MediaPolicy
from sglang.batch.records import Answer, BatchFailure, BatchRequest
from sglang.batch.run.committer import CommitLimits, is_full
from sglang.batch.run.files import JobFiles
from sglang.batch.run.identity import FILES
from sglang.batch.run.job import BatchJob
from sglang.batch.run.journal import Journal
from sglang.batch.run.lengths import Lengths
from sglang.batch.run.recovery import Continue, OpenJob, Work, open_job
from sglang.batch.run.rounds import RoundLimits, Rounds
from sglang.batch.run.schema import JournalUnusable
from sglang.batch.run.stops import Stopped
from sglang.batch.run.tally import Tally
from sglang.batch.serve.content import check_content, input_source
from sglang.batch.serve.forecast import Forecast, Forecaster
from sglang.batch.serve.live import CANCEL_SECONDS, CANCELLED, EXPIRED, Live
from sglang.batch.serve.objects import counts, usage
from sglang.batch.serve.priority import weight
from sglang.batch.serve.reserve import Reserve
from sglang.batch.serve.room import Terms
from sglang.batch.serve.shared_engine import SharedEngine
from sglang.batch.serve.store import BatchRow, Counts, Store
from sglang.batch.serve.sums import OPEN
from sglang.batch.serve.tracing import Tracing
from sglang.batch.serve.turns import Turns
from sglang.batch.usage import BadUsage

WHY = {
    CANCELLED: "the batch was cancelled before this request was run",
    EXPIRED: "the batch's completion window ended before this request was run",
}

LAST = {"finalizing": "completed", "cancelling": "cancelled", "in_progress": "expired"}
"""Last state of a batch by the state it is in when all lines have their record: one whose time was over stays
in progress till then."""

FULL_SECONDS = 5.0
"""Seconds between two attempts to go on with a batch on a disk that is full."""

T = TypeVar("T")


@dataclass(frozen=True)
class BatchLimits:
    """How batches are carried out.

    Attributes:
        lines: of a batch at most.
        pool: requests of one batch in flight at most.
        commits: when records are committed.
        media: what requests may name beside data URLs.
        identity: what decides answers, see `run.identity.identity`.
        plans: whether the engine's scheduler looks at expected lengths of answers.
        gpus: that the engine has; 1 where nobody knows.
    """

    lines: int
    pool: int
    commits: CommitLimits
    media: MediaPolicy
    identity: dict[str, Any]
    plans: bool = False
    gpus: int = 1


class Batches:
    """Carries out the batches of a store.

    Args:
        reserve: space for those that end.
        engine: for all of them.
        say: tells the operator.
        tracing: makes spans of batches.

    Attributes:
        failed: completed with the error that ends the service.
        error_codes: lines that failed, by code, of batches that ended since the start.
    """

    def __init__(
        self,
        store: Store,
        reserve: Reserve,
        engine: SharedEngine,
        limits: BatchLimits,
        say: Callable[[str], object],
        tracing: Tracing,
    ) -> None:
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.error_codes: Counter[str] = Counter()
        self._store = store
        self._reserve = reserve
        self._engine = engine
        self._limits = limits
        self._say = say
        self._tracing = tracing
        self._turns = Turns(engine.room)
        self._lengths = Lengths(str(limits.identity.get(FILES) or limits.identity.get("--model-path")))
        self._lengths.load(store.lengths)
        self._forecaster = Forecaster(store, engine.room, self._lengths, gpus=limits.gpus)
        self._live: dict[str, Live] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def go_on(self) -> None:
        """Go on with all batches that are open, after it is known how far each of them is."""
        self._reserve.give()
        for batch in self._store.open_batches():
            done = self._done(batch)
            if done is not None:
                self._store.set_counts(batch.id, done)
            self.begin(batch.id)
        self._reserve.hold()

    def _done(self, batch: BatchRow) -> Counts | None:
        """Read from a job's journal how much is done; None where there is none yet."""
        path = self._job_files(batch).journal
        if not path.exists():
            return None
        with suppress(JournalUnusable, sqlite3.Error):
            journal = Journal(path, read_only=True)
            try:
                tally = journal.tally()
            finally:
                journal.close()
            # While lines are counted, or were counted in vain, the store knows better how many there are.
            return Counts(max(tally.lines, batch.counts.total), tally.answered, tally.failed)
        return None

    def begin(self, id: str) -> None:
        """Begin with a batch, or go on; nothing happens if it is under way, or has ended."""
        batch = self._store.batch(id)
        if id in self._live or self._stopping or batch.status not in OPEN:
            return
        self._live[id] = Live(terms(batch))
        task = asyncio.ensure_future(self._carry(id, self._live[id]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self, id: str) -> bool:
        """Cancel a batch; returns whether it was still to be run."""
        self._reserve.give()
        if not self._store.move(id, "cancelling", of=("validating", "in_progress")):
            return False
        self.begin(id)  # one that waits for other settings is closed with its own
        if (live := self._live.get(id)) is not None:
            live.end(CANCELLED)
        return True

    def tally(self, id: str) -> Tally | None:
        """Tell what is done of a batch whose job is open."""
        live = self._live.get(id)
        return None if live is None else live.tally

    def tallies(self) -> dict[str, Tally]:
        """Tell what is done of the batches whose jobs are open, by id."""
        return {id: live.tally for id, live in self._live.items() if live.tally is not None}

    async def forecast(self, batch: BatchRow) -> Forecast:
        """Foretell when a batch ends, and what it takes."""
        if batch.id in self._live:
            with suppress(OSError):  # it has ended meanwhile
                await self._forecaster.estimate(batch)
        return self._forecaster.forecast(batch, self._live)

    async def stop(self) -> None:
        """Stop all jobs, to be gone on with: what runs gets seconds to end."""
        self._stopping = True
        for live in self._live.values():
            live.stops.stop(signal.SIGTERM)
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _carry(self, id: str, live: Live) -> None:
        try:
            with self._tracing.span("batch", id=id) as note:
                batch = self._store.batch(id)
                note("endpoint", batch.request.endpoint)
                with _expiring(batch, live):
                    await self._carry_patiently(id, live)
                batch = self._store.batch(id)
                note("status", batch.status)
                note("answered", batch.counts.completed)
                note("failed", batch.counts.failed)
        except BadUsage as error:
            if live.tally is not None:
                self._store.set_counts(id, counts(live.tally))
            self._say(f"{id}: waits; cancel it, or start the service as it was: {error}")
        except Exception as error:
            if not self.failed.done():
                self.failed.set_result(error)
        finally:
            self._forecaster.ended(id, live)
            self._live.pop(id, None)
            self._reserve.hold()

    async def _carry_patiently(self, id: str, live: Live) -> None:
        """Carry a batch on, and again as long as the disk is full: as after a kill, its job goes on."""
        said = False
        while not self._stopping:
            try:
                await self._carry_on(self._store.batch(id), live)
                return
            except (OSError, sqlite3.Error) as error:
                if not is_full(error, self._store.root):
                    raise
                if not said:
                    self._say(f"{id}: waits for room on the disk; nothing is lost: {error}")
                    said = True
            if live.ends:
                self._reserve.give()
            await asyncio.sleep(FULL_SECONDS)

    async def _carry_on(self, batch: BatchRow, live: Live) -> None:
        if batch.times["in_progress_at"] is None:
            with self._tracing.span("batch.validate"):
                if not await self._validated(batch):
                    return
        live.lines = self._store.batch(batch.id).counts.total
        async with AsyncExitStack() as stack:
            with self._tracing.span("batch.wait"):
                await stack.enter_async_context(self._turns.turn(live.terms, live.lines, live.stops))
            if not self._stopping:
                await self._run(self._store.batch(batch.id), live)

    async def _validated(self, batch: BatchRow) -> bool:
        """Check a batch's lines; returns whether they are to be run, or at least recorded."""
        path = self._store.folder(batch.id) / "input.jsonl"
        check = partial(check_content, path, endpoint=batch.request.endpoint, most=self._limits.lines)
        content = await asyncio.to_thread(check)
        if self._stopping:
            return False
        if content.errors:
            self._store.move(batch.id, "failed", of=("validating",), errors=content.errors)
            self._store.move(batch.id, "cancelled", of=("cancelling",))
            await asyncio.to_thread(shutil.rmtree, path.parent, ignore_errors=True)
            return False
        total = Counts(content.lines)
        if not self._store.move(
            batch.id, "in_progress", of=("validating",), counts=total, model=content.model
        ):
            self._store.set_counts(batch.id, total)  # it was cancelled meanwhile
        return True

    async def _run(self, batch: BatchRow, live: Live) -> None:
        opened = open_job(
            self._job_files(batch),
            identity=self._identity(batch, live),
            sources=[input_source(self._store.folder(batch.id) / "input.jsonl")],
            how=Continue(),
            say=self._saying(batch),
        )
        async with _in_thread(opened) as job:
            live.tally = tally = job.journal.tally()
            live.twins = job.journal.twins.count()
            try:
                if tally.done < tally.lines and live.ending is None:
                    with self._tracing.span("batch.run", lines=tally.lines - tally.done):
                        await self._run_lines(batch, job, live)
            except Stopped:
                if live.ending is None:
                    return  # the service ends
            if live.ending is not None:
                await self._close_lines(job, live, live.ending)
            with self._tracing.span("batch.finish"):
                await self._finish(batch, job, tally)

    async def _run_lines(self, batch: BatchRow, job: OpenJob, live: Live) -> None:
        tally = live.tally
        assert tally is not None
        await self._forecaster.estimate(batch)
        engine = self._engine.for_job(
            live.terms, lambda: tally.lines - tally.done, self._forecaster.costs(batch.id)
        )
        live.seat = engine.seat
        rounds = Rounds(
            job,
            engine,
            MediaGate(engine, self._limits.media),
            tally,
            RoundLimits(
                pool=self._limits.pool,
                barrier=False,
                commits=self._reserve.kept_by(self._limits.commits, lambda: live.ends),
                grace=CANCEL_SECONDS,
                restarts=sys.maxsize,  # the shared engine counts, over all jobs
            ),
            live.stops,
            told=self._lengths.told if self._limits.plans else lambda request: request,
            alone=engine.alone,
            say=self._saying(batch),
        )
        try:
            await rounds.start()
            await rounds.run()
            await rounds.finish()
            await asyncio.to_thread(self._learn, job)
        finally:
            live.seat = None
            engine.leave()

    def _learn(self, job: OpenJob) -> None:
        """Keep the lengths of a job's answers; it is done, so nothing that fails here matters."""
        with suppress(BadUsage, OSError, sqlite3.Error):
            self._lengths.learn(job.answered())
            self._lengths.save(self._store.lengths)

    async def _close_lines(self, job: OpenJob, live: Live, code: str) -> None:
        """Give every line that has none an error record, without running it."""
        assert live.tally is not None
        commits = self._reserve.kept_by(self._limits.commits, lambda: live.ends)
        batch = BatchJob(
            _Nobody(),
            lambda on_commit: job.committer(limits=commits, on_commit=on_commit, say=self._say),
            tally=live.tally,
            pool=commits.records,
        )
        try:
            await batch.run(_unrun(chain(job.work(), job.work_at(job.journal.quarantined())), code))
        finally:
            await batch.committer.close()

    async def _finish(self, batch: BatchRow, job: OpenJob, tally: Tally) -> None:
        """Publish a batch's files when all of its lines have their record."""
        if not tally.codes[EXPIRED]:
            self._store.move(batch.id, "finalizing", of=("in_progress",))
        if job.logs:
            await asyncio.to_thread(job.finish)
        status = self._store.batch(batch.id).status
        self._store.end(
            batch,
            LAST[status],
            of=(status,),
            output=job.files.output if tally.answered else None,
            errors=job.files.errors if tally.failed else None,
            counts=counts(tally),
            usage=usage(tally),
        )
        self.error_codes += tally.codes

    def _job_files(self, batch: BatchRow) -> JobFiles:
        folder = self._store.folder(batch.id)
        return JobFiles.of(folder / "output.jsonl", str(folder / "errors.jsonl"))

    def _identity(self, batch: BatchRow, live: Live) -> dict[str, Any]:
        """Tell what decides answers; of a job that is only to be closed, what it was begun with."""
        path = self._job_files(batch).journal
        if live.ending is None or not path.exists():
            return self._limits.identity
        try:
            journal = Journal(path, read_only=True)
        except JournalUnusable:
            return self._limits.identity
        try:
            was: dict[str, Any] = journal.get("identity", self._limits.identity)
            return was
        finally:
            journal.close()

    def _saying(self, batch: BatchRow) -> Callable[[str], object]:
        def say(text: str) -> None:
            self._say(f"{batch.id}: {text}")
            self._tracing.event(text)

        return say


@contextmanager
def _expiring(batch: BatchRow, live: Live) -> Iterator[None]:
    """End a batch when its window is over, or at once if it is not to go on."""
    left = (batch.times["expires_at"] or 0) - time.time()
    expiry = asyncio.get_running_loop().call_later(max(left, 0), live.end, EXPIRED)
    if batch.status == "cancelling":
        live.end(CANCELLED)
    elif left <= 0:
        live.end(EXPIRED)
    try:
        yield
    finally:
        expiry.cancel()


def terms(batch: BatchRow) -> Terms:
    """On what terms a batch is run."""
    begin, deadline = batch.times["created_at"] or 0, batch.times["expires_at"] or 0
    priority = weight(None)
    with suppress(ValueError):  # an older version took any
        priority = weight(batch.request.metadata)
    return Terms(batch.owner, priority, begin, deadline)


class _Nobody:
    """Stands in for an engine where every line is a failure already."""

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        raise AssertionError(f"line {request.line} was to be closed, not to be run")


def _unrun(work: Iterable[Work], code: str) -> Iterator[Work]:
    """Say of lines that they were not run."""
    for item in work:
        line = item.item
        yield Work(item.position, BatchFailure(line.line, line.custom_id, code, WHY[code]), item.file)


@asynccontextmanager
async def _in_thread(opened: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Open and close something that takes a while in a thread."""
    value = await asyncio.to_thread(opened.__enter__)
    try:
        yield value
    finally:
        await asyncio.to_thread(opened.__exit__, None, None, None)

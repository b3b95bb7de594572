"""A job's lines, one life of the engine after the other.

What is pending is one pool; when the engine dies it is started again, and what is left is one pool again. A
line that may be why the engine died twice is set aside. Lines set aside run at the end, by themselves: all
together, and in halves of those that are left as long as the engine dies of them, down to one line alone. A
line that the engine dies of alone gets an error record.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from sglang.batch.records import BatchFailure, BatchRequest
from sglang.batch.run.barrier import Barrier, NoBarrier
from sglang.batch.run.committer import CommitLimits
from sglang.batch.run.engine.protocol import Engine, EngineDied, EngineFailed
from sglang.batch.run.engine.restarts import FIRST_WAIT, Restarts
from sglang.batch.run.engine.suspects import CRASHED
from sglang.batch.run.job import Answerer, BatchJob
from sglang.batch.run.recovery import OpenJob, Work
from sglang.batch.run.state_poller import StatePoller
from sglang.batch.run.stops import STOP_SECONDS, Stopped, Stops
from sglang.batch.run.tally import Tally

DOUBTS = 2
"""Deaths in a row after which a recording of what ran is no longer believed: it may have died of a request
that waited."""

START, DIED = "start", "engine died"
"""Kinds of events: the engine is up, with the number of lines done by then; it died, and why."""


@dataclass(frozen=True)
class RoundLimits:
    """How a job is run.

    Attributes:
        pool: requests in flight at most.
        barrier: whether admissions wait until the first pool of a round is complete.
        commits: when records are committed.
        grace: seconds that requests in flight get after a signal.
        restarts: deaths of the engine in a row, without an answer between, that are put up with.
    """

    pool: int
    barrier: bool
    commits: CommitLimits
    grace: float
    restarts: int


class Rounds:
    """Runs the open lines of a job to the end, whatever the engine dies of.

    Args:
        job: opened.
        engine: not started yet.
        answerer: what requests are given to: the engine, or something before it.
        tally: counts what is done, the work of earlier runs in it already.
        told: adds to a request what is to be said of it beyond its line.
        alone: holds an engine that others use, too, free of them while lines run that were set aside.
        say: tells the user.

    Attributes:
        poller: collects the scheduler's states, over all of the engine's lives.
    """

    def __init__(
        self,
        job: OpenJob,
        engine: Engine,
        answerer: Answerer,
        tally: Tally,
        limits: RoundLimits,
        stops: Stops,
        *,
        told: Callable[[BatchRequest], BatchRequest] = lambda request: request,
        alone: Callable[[], AbstractAsyncContextManager[object]] = contextlib.nullcontext,
        say: Callable[[str], object],
    ) -> None:
        self.poller = StatePoller(engine.internal_state)
        self._job = job
        self._engine = engine
        self._answerer = answerer
        self._tally = tally
        self._limits = limits
        self._stops = stops
        self._told = told
        self._alone = alone
        self._say = say
        self._restarts = Restarts(limits.restarts)
        self._polling: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Start the engine.

        Raises:
            EngineFailed: it did not start.
            Stopped: a signal came first.
        """
        await self._stops.race(self._engine.start())
        self.note(START, f"{self._tally.done} of {self._tally.lines} lines are done")
        self._polling = asyncio.ensure_future(_until_death(self.poller))

    async def run(self) -> None:
        """Run every line; returns when each has its record on the disk.

        Raises:
            EngineFailed: the engine could not be started again.
            EngineDied: it died too often.
            DiskFailed: records cannot be written.
            Stopped: a signal came before the end.
            BadUsage: a line of the input has changed.
        """
        while (died := await self._round(self._job.work(self._told), note=True)) is not None:
            await self._start_again(died)
        aside = self._job.journal.quarantined()
        if aside:
            async with contextlib.AsyncExitStack() as stack:
                await self._stops.race(stack.enter_async_context(self._alone()))
                self._say(f"{len(aside):,} lines that the engine may have died of run by themselves now")
                await self._by_themselves([aside])

    async def _by_themselves(self, groups: list[list[int]]) -> None:
        """Run lines that were set aside, in halves of those of which the engine dies."""
        while groups:
            group = groups.pop()
            if (died := await self._round(self._job.work_at(group, self._told))) is None:
                continue
            left = [position for position in group if self._job.journal.open_line(position) is not None]
            if len(group) == 1:
                await self._round(_crashed(self._job.work_at(left), died), barrier=NoBarrier())
            else:
                groups += [half for half in (left[len(left) // 2 :], left[: len(left) // 2]) if half]
            if groups:
                await self._start_again(died, expected=True)

    async def finish(self) -> None:
        """Let the poller end, which asks the engine a last time."""
        self.poller.stop()
        if self._polling is not None:
            await asyncio.wait({self._polling}, timeout=STOP_SECONDS)
            if not self._polling.done() or self._polling.exception():
                self._say("the scheduler's own numbers are incomplete: it did not answer")

    async def _start_again(self, died: EngineDied, *, expected: bool = False) -> None:
        """Start the engine again, unless it dies too often; `expected` deaths do not count."""
        wait = FIRST_WAIT if expected else self._restarts.died(self._tally.done)
        while True:
            if wait is None:
                raise died
            self._say(f"starting the engine again in {wait:g} s")
            await self._stops.race(asyncio.sleep(wait))
            try:
                await self.start()
            except EngineFailed as error:
                wait = self._restarts.died(self._tally.done)
                if wait is None:
                    raise
                self._say(str(error))
            else:
                self._tally.restarts += 1
                return

    async def _round(
        self, work: Iterable[Work], *, note: bool = False, barrier: Barrier | None = None
    ) -> EngineDied | None:
        """Run lines until each has its record, or the engine dies.

        Args:
            note: note what the engine may have died of.
            barrier: instead of the engine's.
        """
        batch = BatchJob(
            self._answerer,
            lambda on_commit: self._job.committer(
                limits=self._limits.commits, on_commit=on_commit, say=self._say
            ),
            tally=self._tally,
            pool=self._limits.pool,
            barrier=barrier or self._barrier(),
        )
        running = asyncio.ensure_future(batch.run(work))
        await self._wait(running, batch)
        error = None if running.cancelled() or not running.done() else _first(running.exception())
        stopped = self._stops.first.done()
        if stopped and not batch.committer.open.is_set():
            await batch.committer.abandon()
        else:
            await batch.committer.close()
        if stopped and self._tally.done < self._tally.lines:
            raise Stopped(self._stops.first.result())
        if isinstance(error, EngineDied):
            if error.suspects and self._restarts.in_a_row(self._tally.done) >= DOUBTS:
                error.suspects = None
            self._note_death(error, batch.suspects(error) if note else ())
            return error
        if error is not None:
            raise error
        return None

    def _note_death(self, died: EngineDied, suspects: Iterable[int]) -> None:
        if self._polling is not None:
            self._polling.cancel()
        self._say(f"{died}: {self._tally.done:,} of {self._tally.lines:,} lines are done")
        self.note(DIED, str(died))
        aside = self._job.journal.engine_died(list(suspects))
        if aside:
            self._say(f"{len(aside):,} lines ran in two crashes and are set aside until the others are done")

    def note(self, kind: str, detail: str) -> None:
        """Note something in the journal, for `status`; a full disk is no reason to end otherwise than
        planned."""
        with contextlib.suppress(sqlite3.Error):
            self._job.journal.event(kind, detail)

    def _barrier(self) -> Barrier:
        if not self._limits.barrier:
            return NoBarrier()
        try:
            return self._engine.barrier()
        except LookupError as error:
            missing = error.args[0]
            self._say(f"no pool barrier: this SGLang lacks {missing}; the first plans see part of the pool")
        except EngineDied:
            pass  # the round will find out
        return NoBarrier()

    async def _wait(self, running: asyncio.Future[None], batch: BatchJob) -> None:
        """Wait until a round has run, or has been stopped."""
        await asyncio.wait((running, self._stops.first), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return
        seconds = self._stops.grace(self._limits.grace)
        self._say(
            f"{Stopped(self._stops.first.result())}: what runs may end within {seconds:g} s;"
            " again to stop at once"
        )
        batch.stop()
        ends = (running, self._stops.second)
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        await asyncio.wait({running}, timeout=STOP_SECONDS)


async def _until_death(poller: StatePoller) -> None:
    with contextlib.suppress(EngineDied):  # whoever runs the round hears of it, too
        await poller.run()


def _crashed(work: Iterable[Work], died: EngineDied) -> Iterable[Work]:
    """Say of lines that the engine died of them."""
    for item in work:
        failure = BatchFailure(item.item.line, item.item.custom_id, CRASHED, f"it ran alone, and {died}")
        yield Work(item.position, failure, item.file)


def _first(error: BaseException | None) -> BaseException | None:
    """Unwrap the first error of a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

"""Records reach the disk in groups: one group, two syncs, whatever its size.

A group is appended to the logs, the logs are synced, and one transaction of the journal says where its
records are. Only then are its lines done. Killed before that, a record does not exist and its line is run
again; killed after, it exists. A disk that is full pauses the run: nothing that was computed is lost while
it waits for space.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sglang.batch.records import Usage
from sglang.batch.run.journal import Journal, Log, Recorded
from sglang.batch.run.record_log import RecordLog

GROUP_BYTES = 8 << 20
"""Bytes of records after which a group is closed."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds between two attempts to write to a full disk: doubled from the first to the longest."""

SPARE_BYTES = 1 << 20
"""A disk with less than this left counts as full, whatever SQLite calls its error."""


class DiskFailed(Exception):
    """Records cannot be written; the message says which file and why. What was committed is safe."""


@dataclass(frozen=True)
class CommitLimits:
    """When a group is closed, and how long a full disk is waited for.

    Attributes:
        seconds: since the group's first record; 0 commits each record on its own.
        records: in the group.
        patience: seconds until a disk that stays full ends the run.
    """

    seconds: float = 0.1
    records: int = 512
    patience: float = 3600.0


@dataclass(frozen=True, slots=True)
class Finished:
    """A line's record, to be written.

    Attributes:
        code: of its error; None if it was answered.
    """

    position: int
    record: bytes
    code: str | None
    usage: Usage


class Committer:
    """Writes the records of a job.

    Args:
        journal: a connection of its own; closed with the committer.
        logs: where answers go and where errors go; the same one twice for all in one file.
        on_commit: called for each record once it is on the disk.
        say: tells the user when the disk is full, and when it no longer is.
        sleep: waits between two attempts.

    Attributes:
        open: set while the disk takes records; whoever makes new ones waits for it.
    """

    def __init__(
        self,
        journal: Journal,
        logs: dict[Log, RecordLog],
        *,
        limits: CommitLimits,
        on_commit: Callable[[Finished], object] = lambda finished: None,
        say: Callable[[str], object] = lambda text: None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self._journal = journal
        self._logs = logs
        self._limits = limits
        self._on_commit = on_commit
        self._say = say
        self._sleep = sleep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="committer")
        self._waiting: list[tuple[Finished, asyncio.Future[None]]] = []
        self._bytes = 0
        self._some = asyncio.Event()
        self._enough = asyncio.Event()
        self._closing = False
        self._failure: DiskFailed | None = None
        self._worker = asyncio.ensure_future(self._work())

    async def commit(self, finished: Finished) -> None:
        """Return when the record is on the disk. Cancelled, it is written all the same.

        Raises:
            DiskFailed: it cannot be written.
        """
        if self._failure is not None:
            raise self._failure
        committed = asyncio.get_running_loop().create_future()
        self._waiting.append((finished, committed))
        self._bytes += len(finished.record)
        self._some.set()
        if len(self._waiting) >= self._limits.records or self._bytes >= GROUP_BYTES:
            self._enough.set()
        await committed

    async def close(self) -> None:
        """Write what waits, then let go of the journal.

        Raises:
            DiskFailed: it could not be written.
        """
        self._closing = True
        self._some.set()
        self._enough.set()
        try:
            await self._worker
        finally:
            self._thread.shutdown()
            self._journal.close()
        if self._failure is not None:
            raise self._failure

    async def abandon(self) -> None:
        """Let go of the journal without what waits, for instance for a disk that is full."""
        self._worker.cancel()
        await asyncio.wait({self._worker})
        self._thread.shutdown()
        self._journal.close()

    async def _work(self) -> None:
        while self._failure is None:
            await self._some.wait()
            if not self._enough.is_set():
                try:
                    await asyncio.wait_for(self._enough.wait(), self._limits.seconds)
                except TimeoutError:
                    pass
            group, self._waiting, self._bytes = self._waiting, [], 0
            if not self._closing:
                self._some.clear()
                self._enough.clear()
            elif not group:
                return
            await self._settle(group)

    async def _settle(self, group: list[tuple[Finished, asyncio.Future[None]]]) -> None:
        """Write a group and tell whoever waits for it."""
        try:
            await self._write_patiently([finished for finished, _ in group])
        except Exception as error:
            # What is no error of a disk is one of ours; whoever waits must hear of it all the same.
            failure = error if isinstance(error, DiskFailed) else DiskFailed(f"records are lost: {error}")
            self._failure = failure
            for _, committed in (*group, *self._waiting):
                if not committed.done():
                    committed.set_exception(failure)
                    committed.exception()  # somebody may have stopped waiting
            return
        for finished, committed in group:
            self._on_commit(finished)
            if not committed.done():
                committed.set_result(None)

    async def _write_patiently(self, group: list[Finished]) -> None:
        loop = asyncio.get_running_loop()
        pause, since = FIRST_PAUSE, time.monotonic()
        while True:
            try:
                await loop.run_in_executor(self._thread, self._write, group)
            except (OSError, sqlite3.Error) as error:
                folder = self._journal.path.parent
                if not is_full(error, folder):
                    raise DiskFailed(f"{folder}: cannot be written: {error}") from error
                waited = time.monotonic() - since
                if waited + pause > self._limits.patience:
                    raise DiskFailed(f"{folder}: is full and stayed so for {waited:.0f} s") from error
                if self.open.is_set():
                    self.open.clear()
                    size = sum(len(finished.record) for finished in group)
                    self._say(
                        f"{folder} is full ({error}): paused with {len(group)} answers of {size:,} bytes in"
                        f" memory; nothing is lost. Make room; trying for {self._limits.patience:,.0f} s"
                    )
                await self._sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                if not self.open.is_set():
                    self.open.set()
                    self._say(f"{self._journal.path.parent} takes records again")
                return

    def _write(self, group: Sequence[Finished]) -> None:
        """Write a group, all or nothing."""
        recorded: list[Recorded] = []
        try:
            for log, file in self._distinct_logs():
                mine = [finished for finished in group if self._log(finished) is file]
                if mine:
                    spans = file.append([finished.record for finished in mine])
                    file.sync()
                    recorded += [
                        Recorded(one.position, log, span, one.code, one.usage)
                        for one, span in zip(mine, spans, strict=True)
                    ]
            self._journal.record(recorded)
        except BaseException:
            for _, file in self._distinct_logs():
                file.cut()
            raise
        for log, file in self._distinct_logs():
            file.commit(self._journal.length(log))

    def _log(self, finished: Finished) -> RecordLog:
        return self._logs[Log.ANSWERS if finished.code is None else Log.ERRORS]

    def _distinct_logs(self) -> list[tuple[Log, RecordLog]]:
        answers, errors = self._logs[Log.ANSWERS], self._logs[Log.ERRORS]
        return [(Log.ANSWERS, answers)] + ([(Log.ERRORS, errors)] if errors is not answers else [])


def is_full(error: OSError | sqlite3.Error, folder: os.PathLike[str]) -> bool:
    """Tell whether an error means that a disk, or a quota, is used up."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    code = getattr(error, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_FULL:
        return True
    space = os.statvfs(folder)
    return code & 0xFF == sqlite3.SQLITE_IOERR and space.f_bavail * space.f_frsize < SPARE_BYTES

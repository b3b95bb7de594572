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
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sglang.batch.records import Usage
from sglang.batch.run.give_way import give_way
from sglang.batch.run.journal import Journal, Log, Recorded
from sglang.batch.run.record_log import RecordLog
from sglang.batch.usage import BadUsage

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
        seconds: since the group's first record; 0 commits at once whatever is there.
        records: in the group.
        patience: seconds until a disk that stays full ends the run.
        claim: called in the thread that writes before each attempt; the error of a full disk, if it raises
            that, counts as the disk's own.
    """

    seconds: float = 0.1
    records: int = 512
    patience: float = 3600.0
    claim: Callable[[], object] = lambda: None


@dataclass(frozen=True, slots=True)
class Finished:
    """A line's record, to be written.

    Attributes:
        code: of its error; None if it was answered.
        usage: what was computed for it.
        same_as: position of the line whose record this is a copy of; None where it was run.
        spared: what was not computed for it since it is a copy; None where it was run.
    """

    position: int
    record: bytes
    code: str | None
    usage: Usage
    same_as: int | None = None
    spared: Usage | None = None


class Committer:
    """Writes the records of a job.

    Args:
        journal: a connection of its own; closed with the committer.
        logs: where answers go and where errors go; without the latter, all go into one file.
        pages: adds to a group what is to be written with it or right behind it, in pages of bounded size;
            called in the thread that writes.
        on_commit: called for each record once it is on the disk.
        say: tells the user when the disk is full, and when it no longer is.
        sleep: waits between two attempts.

    Attributes:
        open: set while the disk takes records; whoever makes new ones waits for it.
    """

    def __init__(
        self,
        journal: Journal,
        logs: Mapping[Log, RecordLog],
        *,
        limits: CommitLimits,
        pages: Callable[[Sequence[Finished]], Iterator[Sequence[Finished]]] = lambda group: iter([group]),
        on_commit: Callable[[Finished], object] = lambda finished: None,
        say: Callable[[str], object] = lambda text: None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self._journal = journal
        self._logs = logs
        self._limits = limits
        self._pages = pages
        self._on_commit = on_commit
        self._say = say
        self._sleep = sleep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="committer")
        self._waiting: list[tuple[Finished, asyncio.Future[None]]] = []
        self._bytes = 0
        self._some = asyncio.Event()
        self._enough = asyncio.Event()
        self._closing = False
        self._failure: Exception | None = None
        self._worker = asyncio.ensure_future(self._work())

    async def commit(self, finished: Finished) -> None:
        """Return when the record is on the disk. Cancelled, it is written all the same.

        Raises:
            DiskFailed: it cannot be written.
            BadUsage: `pages` could not add to it.
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
            DiskFailed, BadUsage: as for `commit`.
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
        """Write a group with what belongs to it, and tell whoever waits for it."""
        loop = asyncio.get_running_loop()
        pages = self._pages([finished for finished, _ in group])
        try:
            while page := await loop.run_in_executor(self._thread, next, pages, None):
                await self._write_patiently(page)
                for finished in page:
                    self._on_commit(finished)
                for count, (_, committed) in enumerate(group, start=1):
                    if not committed.done():
                        committed.set_result(None)
                    await give_way(count)
        except Exception as error:
            # What is no error of a disk is one of ours; whoever waits must hear of it all the same.
            known = isinstance(error, DiskFailed | BadUsage)
            self._failure = failure = error if known else DiskFailed(f"records are lost: {error}")
            for _, committed in (*group, *self._waiting):
                if not committed.done():
                    committed.set_exception(failure)
                    committed.exception()  # somebody may have stopped waiting

    async def _write_patiently(self, group: Sequence[Finished]) -> None:
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
        self._limits.claim()
        write_group(self._journal, self._logs, group)


def write_group(journal: Journal, logs: Mapping[Log, RecordLog], group: Sequence[Finished]) -> None:
    """Write records, all or none.

    Raises:
        OSError, sqlite3.Error: the disk failed; the logs are as they were.
    """
    recorded: list[Recorded] = []
    errors = Log.ERRORS if Log.ERRORS in logs else Log.ANSWERS
    try:
        for log, file in logs.items():
            mine = [one for one in group if log is (Log.ANSWERS if one.code is None else errors)]
            if mine:
                spans = file.append([finished.record for finished in mine])
                file.sync()
                recorded += [
                    Recorded(one.position, log, span, one.code, one.usage, one.same_as)
                    for one, span in zip(mine, spans, strict=True)
                ]
        journal.record(recorded)
    except BaseException:
        for file in logs.values():
            file.cut()
        raise
    for log, file in logs.items():
        file.commit(journal.length(log))


def is_full(error: OSError | sqlite3.Error, folder: os.PathLike[str]) -> bool:
    """Tell whether an error means that a disk, or a quota, is used up."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    code = getattr(error, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_FULL:
        return True
    space = os.statvfs(folder)
    return code & 0xFF == sqlite3.SQLITE_IOERR and space.f_bavail * space.f_frsize < SPARE_BYTES

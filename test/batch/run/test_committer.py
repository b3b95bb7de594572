"""Records reach the disk in groups, all or nothing; a full disk costs time and nothing else."""

import asyncio
import errno
import os
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from journals import journal
from stand_ins import settled

from sglang.batch.records import Usage
from sglang.batch.run.committer import CommitLimits, Committer, DiskFailed, Finished
from sglang.batch.run.journal import Journal, Log
from sglang.batch.run.record_log import RecordLog
from sglang.batch.usage import BadUsage


class FaultyDisk:
    """Lets call number `at` fail, and `times` after it, counted over all calls that write."""

    def __init__(self, at: int, number: int = errno.ENOSPC, times: int = 1) -> None:
        self.at, self.number, self.times, self.calls = at, number, times, 0

    def _may_fail(self) -> None:
        self.calls += 1
        if self.at <= self.calls < self.at + self.times:
            raise OSError(self.number, os.strerror(self.number))

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        half = max(len(data) // 2, 1)
        written = os.pwrite(fd, data[:half], offset)
        self._may_fail()
        return written

    def fdatasync(self, fd: int) -> None:
        self._may_fail()
        os.fdatasync(fd)

    def ftruncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)


async def at_once(seconds: float) -> None:
    await asyncio.sleep(0)


def finished(position: int, code: str | None = None) -> Finished:
    return Finished(position, b'{"line": %d}\n' % position, code, Usage(1, 0, 1))


class Scene:
    """A committer over a new journal of `lines` lines."""

    def __init__(self, folder: Path, *, lines: int, one_file: bool = False, **disk: Any) -> None:
        self.folder = folder
        self.journal = journal(folder, lines=lines)
        self.said: list[str] = []
        self.done: list[int] = []
        disk_calls = disk or {}
        self.logs = {Log.ANSWERS: RecordLog(folder / "answers", length=0, **disk_calls)}
        if not one_file:
            self.logs[Log.ERRORS] = RecordLog(folder / "errors", length=0, **disk_calls)

    def committer(
        self, limits: CommitLimits, sleep: Callable[[float], Awaitable[object]] = at_once, **options: Any
    ) -> Committer:
        return Committer(
            Journal(self.folder / "journal"),
            self.logs,
            limits=limits,
            on_commit=lambda one: self.done.append(one.position),
            say=self.said.append,
            sleep=sleep,
            **options,
        )

    def assert_consistent(self) -> None:
        """What the journal names is in the logs, and nothing else after a cut."""
        assert self.journal.check() == []
        for log, file in self.logs.items():
            file.length = self.journal.length(log)
            for position, span in self.journal.spans(log, by_position=False):
                assert file.read(span) == finished(position).record
        pending = {line.position for line in self.journal.pending(after=-1, limit=10_000)}
        assert pending.isdisjoint(self.done), "a line counted as done without its record"


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


def test_a_group_is_one_commit_and_comes_after_its_time(tmp_path: Path) -> None:
    scene = Scene(tmp_path, lines=3)

    async def scenario() -> None:
        committer = scene.committer(CommitLimits(seconds=0.2))
        waiting = asyncio.gather(
            *(committer.commit(finished(i, code)) for i, code in enumerate([None, "bad", None]))
        )
        await settled()
        assert scene.done == []
        await waiting
        assert sorted(scene.done) == [0, 1, 2]
        await committer.close()

    run(scenario())
    assert (tmp_path / "answers").read_bytes() == finished(0).record + finished(2).record
    assert (tmp_path / "errors").read_bytes() == finished(1).record
    scene.assert_consistent()


def test_a_full_group_does_not_wait_for_its_time(tmp_path: Path) -> None:
    scene = Scene(tmp_path, lines=4)

    async def scenario() -> None:
        committer = scene.committer(CommitLimits(seconds=1000, records=2))
        await asyncio.gather(*(committer.commit(finished(i)) for i in range(4)))
        await committer.close()

    run(scenario())
    assert sorted(scene.done) == [0, 1, 2, 3]


def test_closing_writes_what_waits_also_for_those_who_gave_up(tmp_path: Path) -> None:
    scene = Scene(tmp_path, lines=2)

    async def scenario() -> None:
        committer = scene.committer(CommitLimits(seconds=1000))
        waiting = asyncio.ensure_future(committer.commit(finished(1)))
        await asyncio.sleep(0)
        waiting.cancel()
        await committer.close()

    run(scenario())
    assert scene.done == [1]
    scene.assert_consistent()


def test_answers_and_errors_may_share_a_file(tmp_path: Path) -> None:
    scene = Scene(tmp_path, lines=3, one_file=True)

    async def scenario() -> None:
        committer = scene.committer(CommitLimits(seconds=0))
        for i, code in enumerate([None, "bad", None]):
            await committer.commit(finished(i, code))
        await committer.close()

    run(scenario())
    assert (tmp_path / "answers").read_bytes() == b"".join(finished(i).record for i in range(3))
    scene.assert_consistent()


async def commit_one_by_one(committer: Committer, lines: int) -> None:
    for i in range(lines):
        await committer.commit(finished(i, "bad" if i % 3 == 0 else None))


CALLS = 24
"""More calls than six records of two halves each make."""


@pytest.mark.parametrize("at", range(1, CALLS))
def test_a_full_disk_at_any_call_pauses_and_loses_nothing(at: int, tmp_path: Path) -> None:
    disk = FaultyDisk(at, times=3)
    scene = Scene(tmp_path, lines=6, disk=disk)

    async def scenario() -> None:
        committer = scene.committer(CommitLimits(seconds=0))
        await commit_one_by_one(committer, 6)
        assert committer.open.is_set()
        await committer.close()

    run(scenario())
    assert scene.done == list(range(6))
    assert len(scene.said) == 2, scene.said  # one message that it is full, one that it no longer is
    assert "full" in scene.said[0]
    scene.assert_consistent()
    assert scene.journal.open_lines() == 0


def with_followers(group: Sequence[Finished]) -> Iterator[list[Finished]]:
    """Lines 0 and 3 have two followers each, one in the group's own page and one in another."""
    yield [*group, *(finished(one.position + 1, one.code) for one in group)]
    for one in group:
        yield [finished(one.position + 2, one.code)]


@pytest.mark.parametrize("at", range(1, CALLS))
def test_a_full_disk_at_any_call_pauses_and_loses_no_follower(at: int, tmp_path: Path) -> None:
    scene = Scene(tmp_path, lines=6, disk=FaultyDisk(at, times=3))

    async def scenario() -> None:
        committer = scene.committer(CommitLimits(seconds=0), pages=with_followers)
        await committer.commit(finished(0))
        await committer.commit(finished(3, "bad"))
        await committer.close()

    run(scenario())
    assert scene.done == list(range(6))
    scene.assert_consistent()
    assert scene.journal.open_lines() == 0


def test_a_follower_that_cannot_be_read_ends_the_run_as_what_it_is(tmp_path: Path) -> None:
    scene = Scene(tmp_path, lines=2)

    def changed(group: Sequence[Finished]) -> Iterator[list[Finished]]:
        yield list(group)
        raise BadUsage("line 2 has changed")

    async def scenario() -> None:
        committer = scene.committer(CommitLimits(seconds=0), pages=changed)
        await committer.commit(finished(0))
        with pytest.raises(BadUsage, match="line 2"):
            await committer.close()

    run(scenario())
    assert scene.done == [0]
    scene.assert_consistent()


@pytest.mark.parametrize("at", range(1, CALLS, 2))
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_at_any_call_ends_the_run_with_what_was_committed(
    at: int, number: int, tmp_path: Path
) -> None:
    scene = Scene(tmp_path, lines=6, disk=FaultyDisk(at, number, times=1000))

    async def scenario() -> None:
        committer = scene.committer(CommitLimits(seconds=0, patience=2.5))
        with pytest.raises(DiskFailed):
            await commit_one_by_one(committer, 6)
        with pytest.raises(DiskFailed):
            await committer.commit(finished(5))
        with pytest.raises(DiskFailed):
            await committer.close()

    run(scenario())
    scene.assert_consistent()
    assert all(file.size() == file.length for file in scene.logs.values())
    assert len(scene.done) == 6 - scene.journal.open_lines() < 6


def test_a_journal_that_is_full_pauses_too(tmp_path: Path) -> None:
    scene = Scene(tmp_path, lines=400)

    async def scenario() -> None:
        committer = scene.committer(CommitLimits(seconds=0, records=400), make_room)
        db = committer._journal._db
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
        rooms.append(lambda: db.execute("PRAGMA max_page_count = 1000000"))
        long = "x" * 4000
        await committer.commit(Finished(0, finished(0).record, long, Usage()))
        await committer.close()

    rooms: list[Callable[[], object]] = []

    async def make_room(seconds: float) -> None:
        rooms.pop()()

    run(scenario())
    assert scene.done == [0]
    assert len(scene.said) == 2
    assert (tmp_path / "errors").read_bytes() == finished(0).record


def test_whoever_makes_records_is_told_to_wait_while_the_disk_is_full(tmp_path: Path) -> None:
    scene = Scene(tmp_path, lines=1, disk=FaultyDisk(1))
    closed: list[bool] = []

    async def scenario() -> None:
        async def look(seconds: float) -> None:
            closed.append(not committer.open.is_set())

        committer = scene.committer(CommitLimits(seconds=0), look)
        await committer.commit(finished(0))
        assert committer.open.is_set()
        await committer.close()

    run(scenario())
    assert closed == [True]


def test_a_locked_journal_is_not_a_full_one(tmp_path: Path) -> None:
    from sglang.batch.run.committer import is_full

    assert not is_full(sqlite3.OperationalError("database is locked"), tmp_path)
    assert is_full(OSError(errno.EDQUOT, "quota"), tmp_path)

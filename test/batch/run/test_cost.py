"""What a job does per line, counted: transactions, syncs, statements, objects. No clock is looked at."""

import asyncio
import gc
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from journals import journal
from stand_ins import FakeAnswerer, job, line, work

from sglang.batch.input.source import find_sources
from sglang.batch.records import BatchRequest, Usage
from sglang.batch.run import command
from sglang.batch.run import journal as journal_module
from sglang.batch.run.committer import CommitLimits, Committer, Finished
from sglang.batch.run.files import JobFiles
from sglang.batch.run.give_way import STRIDE
from sglang.batch.run.job import BatchJob
from sglang.batch.run.journal import Journal, Log
from sglang.batch.run.record_log import RecordLog
from sglang.batch.run.recovery import PAGE, Continue, OpenJob, open_job
from sglang.batch.run.tally import Tally

LINES = 10_000


class CountingDisk:
    def __init__(self) -> None:
        self.writes = self.syncs = 0

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self.writes += 1
        return os.pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        self.syncs += 1

    def ftruncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The SQL that journals run from here on, a statement of `executemany` once for each of its rows."""
    ran: list[str] = []
    connect = journal_module.connect

    def traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        db = connect(*args, **kwargs)
        db.set_trace_callback(ran.append)
        return db

    monkeypatch.setattr(journal_module, "connect", traced)
    return ran


def count(statements: list[str], beginning: str) -> int:
    return sum(statement.startswith(beginning) for statement in statements)


def test_a_group_takes_one_write_one_sync_and_one_transaction(tmp_path: Path, statements: list[str]) -> None:
    group = 500
    journal(tmp_path, lines=LINES).close()
    statements.clear()
    disk = CountingDisk()

    async def scenario() -> None:
        logs = {Log.ANSWERS: RecordLog(tmp_path / "answers", length=0, disk=disk)}
        limits = CommitLimits(seconds=1000, records=group)
        committer = Committer(Journal(tmp_path / "journal"), logs, limits=limits)
        for first in range(0, LINES, group):
            records = [Finished(i, b"{}\n", None, Usage()) for i in range(first, first + group)]
            await asyncio.gather(*map(committer.commit, records))
        await committer.close()

    asyncio.run(scenario())
    groups = LINES // group
    assert (disk.writes, disk.syncs, count(statements, "BEGIN")) == (groups, groups, groups)
    assert count(statements, "UPDATE line") == LINES
    assert len(statements) - LINES <= 10 * groups


@contextmanager
def opened(folder: Path) -> Iterator[OpenJob]:
    sources = find_sources([str(folder / "in.jsonl")])
    files = JobFiles.of(folder / "out.jsonl", None)
    with open_job(files, identity={}, sources=sources, how=Continue(), say=lambda text: None) as job:
        yield job


def test_lines_are_entered_and_read_in_pages_and_compared_by_one_statement(
    tmp_path: Path, statements: list[str]
) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"".join(line(str(i)) for i in range(LINES)))
    with opened(tmp_path) as job:
        assert count(statements, "INSERT INTO line") == LINES
        assert count(statements, "BEGIN") <= LINES // 1000 + 5
        statements.clear()
        assert sum(1 for _ in job.work()) == LINES
        assert len(statements) == LINES // PAGE + 1

        async def answer_one() -> None:
            committer = job.committer(limits=CommitLimits(seconds=0))
            await committer.commit(Finished(0, b"{}\n", None, Usage()))
            await committer.close()

        asyncio.run(answer_one())
    statements.clear()
    with opened(tmp_path):
        assert count(statements, "SELECT position, input, number, offset, length, hash, custom_id") == 1
        assert len(statements) <= 30  # whatever the number of lines


def test_requests_in_memory_are_bounded_by_the_pool(tmp_path: Path) -> None:
    lines, pool = 5000, 200
    done = most = 0
    journal(tmp_path, lines=lines).close()

    def alive() -> int:
        return sum(isinstance(one, BatchRequest | Finished) for one in gc.get_objects())

    gc.collect()
    of_other_tests = alive()

    def look(finished: Finished) -> None:
        nonlocal done, most
        done += 1
        if done % 500 == 0:
            most = max(most, alive() - of_other_tests)

    async def scenario() -> None:
        logs = {Log.ANSWERS: RecordLog(tmp_path / "answers", length=0)}
        limits = CommitLimits(seconds=0.05, records=pool // 2)
        batch = BatchJob(
            FakeAnswerer(),
            lambda commit: Committer(
                Journal(tmp_path / "journal"),
                logs,
                limits=limits,
                on_commit=lambda one: (commit(one), look(one)),
            ),
            tally=Tally(),
            pool=pool,
        )
        await batch.run(work(line(str(i)) for i in range(lines)))
        await batch.committer.close()

    asyncio.run(scenario())
    assert 0 < most <= 2 * (pool + 1)  # each has a request and a record; one more is being read


def test_requests_of_a_full_pool_are_with_the_engine_before_the_barrier_settles() -> None:
    """Though the loop turns only once for many of them."""
    pool = STRIDE // 2
    answerer = FakeAnswerer(seconds={str(i): 0.05 for i in range(pool)})
    seen: list[int] = []

    class Barrier:
        async def close(self) -> None:
            pass

        async def settle(self, in_flight: object, request_ids: object) -> None:
            seen.append(len(answerer.seen))

        async def open(self) -> None:
            pass

    asyncio.run(job(answerer, pool=pool, barrier=Barrier()).run(work(line(str(i)) for i in range(2 * pool))))
    assert seen == [pool]


def test_cycles_are_looked_for_rarely_only_while_a_job_runs() -> None:
    usual = gc.get_threshold()
    with command.collecting_rarely():
        assert gc.get_threshold()[0] == command.COLLECT_AFTER > usual[0]
        assert gc.get_freeze_count() > 0
    assert gc.get_threshold() == usual
    assert gc.get_freeze_count() == 0

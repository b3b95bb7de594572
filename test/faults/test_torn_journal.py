"""A journal whose last write was torn is as it was at an earlier commit, and its job goes on from there."""

import json
from pathlib import Path

import pytest
from echo_jobs import FAULTS, EchoJob, request

from sglang.batch.input.source import find_sources
from sglang.batch.run.files import JobFiles
from sglang.batch.run.journal import Journal, Log
from sglang.batch.run.recovery import Continue, open_job

FRAME = 24 + 4096
"""Bytes of SQLite's write-ahead log for one page."""


@pytest.fixture
def killed(tmp_path: Path) -> EchoJob:
    """A job that was killed while its journal had a write-ahead log."""
    job = EchoJob(tmp_path, [request(f"r{i}") for i in range(40)])
    job.kill_after_records(12, "--echo-seconds", "0.5", "--commit-ms", "0", "--pool", "8")
    return job


def identity(job: EchoJob) -> dict[str, str]:
    journal = Journal(job.journal, read_only=True)
    try:
        return dict(journal.get("identity"))
    finally:
        journal.close()


def open_again(job: EchoJob, deciding: dict[str, str]) -> set[int]:
    """Open the job as a run does; returns the positions that are done, whose records are all there."""
    with open_job(
        JobFiles.of(job.output, None),
        identity=deciding,
        sources=find_sources([str(job.input)], without=job.output),
        how=Continue(),
        say=lambda text: None,
    ) as opened:
        assert opened.journal.check() == []
        done = set()
        for log in Log:
            for position, span in opened.journal.spans(log, by_position=True):
                json.loads(opened.logs[log].read(span))
                done.add(position)
            assert opened.logs[log].size() == opened.journal.length(log)
        left = {work.position for work in opened.work()}
        assert done | left == set(range(40))
        assert not done & left
        return done


def test_a_write_ahead_log_that_lost_its_end_at_any_byte_loses_no_line(killed: EchoJob) -> None:
    wal = Path(f"{killed.journal}-wal")
    deciding = identity(killed)
    saved = {path: path.read_bytes() for path in killed.folder.iterdir() if path.is_file()}
    size = len(saved[wal])
    assert size > 2 * FRAME
    whole = open_again(killed, deciding)
    counts = set()
    for cut in range(0, FRAME + 2, 1 if FAULTS == "all" else 397):
        for path in killed.folder.iterdir():
            if path.is_file() and path not in saved:
                path.unlink()
        for path, content in saved.items():
            path.write_bytes(content)
        wal.write_bytes(saved[wal][: size - cut])
        Path(f"{killed.journal}-shm").unlink(missing_ok=True)
        done = open_again(killed, deciding)
        assert done <= whole
        counts.add(len(done))
    assert len(counts) > 1, "the last commit was torn, and with it its record"
    code, said = killed.run()
    assert code == 0, said
    assert killed.ids() == sorted(f"r{i}" for i in range(40))


@pytest.mark.parametrize("cut", [1, 100, 4096, 20_000, -50])
def test_a_journal_that_lost_its_end_is_refused_with_the_remedy_or_loses_no_line(
    cut: int, killed: EchoJob
) -> None:
    open_again(killed, identity(killed))  # folds the write-ahead log into the journal
    raw = killed.journal.read_bytes()
    answers = killed.partial.read_bytes()
    killed.journal.write_bytes(raw[:-cut])
    code, said = killed.run()
    if code == 2:
        assert "--restart" in said
        assert killed.partial.read_bytes() == answers, "answers are left alone"
    else:  # what is gone held nothing
        assert code == 0, said
        assert killed.ids() == sorted(f"r{i}" for i in range(40))

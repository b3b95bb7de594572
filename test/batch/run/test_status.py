"""What the journal says is told, while a run holds the lock and after it."""

from pathlib import Path

import pytest
from journals import recorded, row

from sglang.batch import cli
from sglang.batch.run.journal import Journal
from sglang.batch.run.lock import holder, locked


@pytest.fixture
def made(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "out.jsonl.journal", create=True)
    journal.put_lines([row(position) for position in range(6)])
    journal.record([recorded(0, 0)])
    journal.set(state="running")
    journal.event("start", "1 of 6 lines are done")
    journal.record([recorded(1, 10), recorded(2, 0, code="bad")])
    return journal


def status(folder: Path, *flags: str) -> int:
    return cli.main(["status", str(folder / "out.jsonl"), *flags])


def test_a_run_is_shown_beside_the_process_that_writes(
    tmp_path: Path, made: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(tmp_path / "out.jsonl.lock"):
        assert status(tmp_path) == 0
    out = capsys.readouterr().out
    assert "running, process" in out
    rows = {name.strip(): value for name, value in ((r[:23], r[23:]) for r in out.splitlines()[1:])}
    assert (rows["lines"], rows["answered"], rows["with an error"], rows["bad"]) == ("6", "2", "1", "1")
    assert rows["left"].startswith("3, ")
    assert "lines/s" in rows["left"]


def test_a_run_that_was_killed_is_told_from_one_that_finished(
    tmp_path: Path, made: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(tmp_path) == 0
    assert "same `sglang-batch run` command continues" in capsys.readouterr().out
    made.record([recorded(3, 20), recorded(4, 30), recorded(5, 40)])
    made.set(state="finished")
    assert status(tmp_path) == 0
    assert "finished" in capsys.readouterr().out


def test_a_broken_journal_is_found_by_a_check(
    tmp_path: Path, made: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(tmp_path, "--check") == 0
    made._db.execute("UPDATE line SET record_offset = 5 WHERE position = 1")
    assert status(tmp_path, "--check") == 1
    assert "overlaps" in capsys.readouterr().out


def test_an_output_without_a_journal_is_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(tmp_path) == 2
    assert "out.jsonl" in capsys.readouterr().err


def test_a_lock_ends_with_whoever_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holder(path) is None
    with locked(path):
        assert "process" in str(holder(path))
    assert holder(path) is None

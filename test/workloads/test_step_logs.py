"""The comparison of step logs: one differing bit, or one missing schedule, is a difference."""

from pathlib import Path

import pytest
from benchmark import step_logs


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    both = tmp_path / "before", tmp_path / "after"
    for folder in both:
        folder.mkdir()
        (folder / step_logs.COMMIT).write_text(folder.name + "\n")
        (folder / "scenario-simulated-blend.json").write_text('{"seconds": 1.0}\n')
    return both


def test_equal_logs_of_two_commits_are_identical(folders, capsys):
    assert step_logs.compare(*folders) == 0
    assert "before and after: 1 of 1 step logs are identical" in capsys.readouterr().out


def test_a_last_digit_that_differs_is_named(folders, capsys):
    (folders[1] / "scenario-simulated-blend.json").write_text('{"seconds": 1.0000000000000002}\n')
    assert step_logs.compare(*folders) == 1
    assert "differs: scenario-simulated-blend.json" in capsys.readouterr().out


def test_a_schedule_that_is_missing_differs(folders):
    (folders[0] / "quick-trace1-blend-mixed.npy").write_bytes(b"")
    assert step_logs.compare(*folders) == 1


def test_two_folders_without_schedules_prove_nothing(folders):
    for folder in folders:
        (folder / "scenario-simulated-blend.json").unlink()
    assert step_logs.compare(*folders) == 1

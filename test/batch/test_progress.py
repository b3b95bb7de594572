"""The progress bar is there for people at a terminal, and nobody else."""

import io
import sys

import pytest

from sglang.batch.progress import progress_bar
from sglang.batch.run.tally import Tally


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, *, quiet: bool) -> str:
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress_bar(total=3, quiet=quiet) as show:
        show(Tally(answered=2, failed=1, prompt_tokens=600, completion_tokens=400, seconds=2.0))
    return stderr.getvalue()


def test_a_terminal_sees_lines_done_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = shown(monkeypatch, Terminal(), quiet=False)
    assert "3/3" in bar
    assert "500 tokens/s" in bar


def test_a_log_file_sees_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO(), quiet=False) == ""


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, Terminal(), quiet=True) == ""

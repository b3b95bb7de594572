"""A terminal sees a bar, a log a line now and then, and who wants quiet nothing."""

import io
import sys

import pytest

from sglang.batch.progress import FIRST_PAUSE, LONGEST_PAUSE, Log, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Three:
    """All of three lines."""

    done = 3

    def text(self) -> str:
        return "500 tokens/s; ETA ~14 min"


def shown(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, *, quiet: bool, log: bool = False) -> str:
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress_bar(total=3, quiet=quiet, log=log) as show:
        show(Three())
    return stderr.getvalue()


def test_a_terminal_sees_lines_done_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = shown(monkeypatch, Terminal(), quiet=False)
    assert "3/3" in bar
    assert "500 tokens/s; ETA ~14 min" in bar


@pytest.mark.parametrize("log", [False, True])
def test_a_short_run_writes_no_line_to_a_log(monkeypatch: pytest.MonkeyPatch, log: bool) -> None:
    assert shown(monkeypatch, io.StringIO(), quiet=False, log=log) == ""


@pytest.mark.parametrize("stderr", [Terminal(), io.StringIO()])
def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO) -> None:
    assert shown(monkeypatch, stderr, quiet=True, log=True) == ""


def test_a_log_gets_whole_lines_ever_more_rarely(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    log = Log(12, clock=lambda: now)
    written = []
    for second in range(3600):
        now = float(second)
        log(Three())
        if capsys.readouterr().err == "sglang-batch: 3 of 12 lines (25%): 500 tokens/s; ETA ~14 min\n":
            written.append(now)
    pauses = [b - a for a, b in zip([0.0, *written], written, strict=False)]
    assert pauses[0] == FIRST_PAUSE
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE

"""A run is told in one line: rate, end, sides, sharing, failures."""

import asyncio
import io
import sys
from collections import Counter
from typing import Any

import pytest
from test_report import state

from sglang.batch.run.run_progress import RunProgress, shown_progress
from sglang.batch.run.tally import Tally


def tally(**changes: Any) -> Tally:
    fields = {
        "lines": 100,
        "answered": 18,
        "failed": 2,
        "codes": Counter({"invalid_json_line": 2}),
        "prompt_tokens": 1000,
        "cached_tokens": 450,
        "completion_tokens": 600,
        "seconds": 20.0,
    }
    return Tally(**{**fields, **changes})


def outlook(done: float, left: float, estimated: float = 0.0) -> dict[str, float]:
    return {
        "done": done,
        "left": left,
        "left_high": left,
        "estimated": estimated,
        "compute": 0.0,
        "memory": 0.0,
    }


def test_a_policy_without_a_plan_is_told_by_its_rate() -> None:
    view = RunProgress(tally(), [], pool=1000)
    text = view.text()
    assert text.startswith("1.0 lines/s, 80 tokens/s; ETA ~80 s at this rate")
    assert "45% of input cached" in text
    assert "failed: 2 invalid_json_line" in text


def test_lines_of_earlier_runs_are_no_part_of_the_rate() -> None:
    view = RunProgress(tally(earlier=10, earlier_tokens=600), [], pool=1000)
    assert view.text().startswith("0.5 lines/s, 50 tokens/s")
    eta = view.eta(20.0)
    assert eta is not None
    assert eta.seconds == 160


def test_blend_is_told_by_its_model_with_both_sides() -> None:
    polls = [
        (0.0, state(waiting=9, outlook=outlook(0, 100))),
        (20.0, state(waiting=9, outlook=outlook(10, 90))),
    ]
    states: list[tuple[float, Any]] = []
    view = RunProgress(tally(), states, pool=1000)
    for poll in polls:
        states.append(poll)
        view.look()
    eta = view.eta(20.0)
    assert eta is not None
    assert eta.seconds == pytest.approx(180)
    assert "running 33% compute, 67% memory side" in view.text()


def test_a_scheduler_that_models_nothing_is_told_by_its_rate() -> None:
    view = RunProgress(tally(), [(1.0, state(waiting=9, outlook=None))], pool=1000)
    view.look()
    eta = view.eta(20.0)
    assert eta is not None
    assert eta.seconds == 80


def test_a_run_that_is_done_has_no_end_to_come() -> None:
    view = RunProgress(tally(answered=98), [], pool=1000)
    assert "ETA" not in view.text()


def test_a_bar_follows_the_run_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    counted = tally(answered=10, failed=0, codes=Counter())

    async def run() -> None:
        async with shown_progress(counted, [], pool=10, quiet=False):
            counted.answered = 97

    asyncio.run(run())
    assert "97/100" in sys.stderr.getvalue()

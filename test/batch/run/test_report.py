"""The report says what was measured, and leaves out what only blend knows when blend was not used."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang.batch.run.blend_history import ROWS, BlendHistory
from sglang.batch.run.picture import PictureUnavailable, draw
from sglang.batch.run.report import Report
from sglang.batch.run.tally import Tally


def state(
    *, waiting: int, density: float | None = 1.5, compute: int = 3000, **changes: Any
) -> dict[str, Any]:
    """A scheduler's blend state, with a KV capacity of 4000 tokens."""
    return {
        "pool_density": density,
        "partition_compute_tokens": compute,
        "partition_memory_tokens": 4000 - compute,
        "used_compute_tokens": 100,
        "used_memory_tokens": 200,
        "sharing_possible": 0.5,
        "waiting": waiting,
        "hardware": "cpu",
        "held": 2,
        "expected_outputs": 5,
        "retractions": 0,
        **changes,
    }


STEP_TIMES = {
    "hardware": "h100",
    "compute": 2.5,
    "memory": 1.0,
    "overhead": 1.0,
    "steps": 1200,
    "seconds": 30.0,
    "predicted_seconds": 27.0,
    "error": 0.04,
}


def report(blend: BlendHistory | None, policy: str = "blend") -> Report:
    tally = Tally(
        lines=5,
        answered=3,
        failed=2,
        codes=Counter({"invalid_json": 2}),
        prompt_tokens=1000,
        cached_tokens=400,
        completion_tokens=200,
        barrier_seconds=0.5,
        seconds=12.0,
    )
    arguments = SimpleNamespace(schedule_policy=policy, device="cpu")
    return Report.of(tally, arguments, kv_capacity=4000, blend=blend)


def test_predicted_step_times_stand_beside_the_real_ones() -> None:
    history = BlendHistory.of([(1.0, state(waiting=0, step_times=STEP_TIMES))])
    assert history is not None
    said = "1,200 steps took 30.0 s, predicted 27.0 s (-10%) for h100, corrected: compute x 2.50"
    assert f"step times      {said}" in history.text()


def test_without_a_measured_step_the_report_says_nothing_of_them() -> None:
    for measured in (None, STEP_TIMES | {"steps": 0}):
        history = BlendHistory.of([(1.0, state(waiting=0, step_times=measured))])
        assert history is not None
        assert "step times" not in history.text()


def test_throughput_counts_input_and_output_tokens() -> None:
    assert report(None).tokens_per_second == 100.0


def test_sharing_is_the_part_of_the_input_that_came_from_the_cache() -> None:
    assert report(None).sharing == pytest.approx(0.4)


def test_another_policy_has_no_blend_lines() -> None:
    assert BlendHistory.of([]) is None
    text = report(None, policy="fcfs").text()
    assert "fcfs" in text
    assert not any(word in text for word in ("density", "partition", "possible"))


def test_density_and_possible_sharing_are_those_of_the_largest_plan() -> None:
    polls = [
        (1.0, state(waiting=0, density=None, sharing_possible=0.0)),
        (2.0, state(waiting=3, density=0.1, sharing_possible=0.1)),
        (3.0, state(waiting=0, density=1.25, sharing_possible=0.6)),
    ]
    history = BlendHistory.of(polls)
    assert history is not None
    assert (history.density, history.sharing_possible) == (1.25, 0.6)
    text = report(history).text()
    assert "1.25" in text
    assert "60.0% possible" in text


def test_moments_before_the_first_plan_are_left_out() -> None:
    nothing = state(waiting=0, compute=0) | {"partition_memory_tokens": 0}
    history = BlendHistory.of([(0.0, nothing), (1.0, state(waiting=2)), (2.0, nothing)])
    assert history is not None
    assert [moment.seconds for moment in history.moments] == [1.0, 2.0]
    divided, undivided = (line.split("|")[1] for line in history.text().splitlines() if "|" in line)
    assert set(divided) == {"#", "="}
    assert set(undivided) == {" "}


def test_the_text_picture_of_a_long_run_has_few_rows_and_both_ends() -> None:
    history = BlendHistory.of([(float(second), state(waiting=1)) for second in range(1000)])
    assert history is not None
    rows = [line for line in history.text().splitlines() if "|" in line]
    assert len(rows) == ROWS
    assert rows[0].split()[0] == "0"
    assert rows[-1].split()[0] == "999"
    assert all(row.count("#") == 3 * row.count("=") for row in rows)


def test_failures_are_listed_by_code() -> None:
    assert "invalid_json" in report(None).text()


def test_the_json_report_holds_every_number(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    history = BlendHistory.of([(1.0, state(waiting=4))])
    report(history).write_json(path)
    written = json.loads(path.read_text())
    assert written["answered"] == 3
    assert written["sharing"] == 0.4
    assert written["blend"]["moments"][0]["compute"] == 3000


def test_there_is_no_picture_of_another_policy(tmp_path: Path) -> None:
    with pytest.raises(PictureUnavailable, match="blend"):
        draw(report(None, policy="fcfs"), tmp_path / "picture.png")


def test_a_picture_is_drawn_or_matplotlib_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    history = BlendHistory.of([(float(second), state(waiting=1)) for second in range(5)])
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        with pytest.raises(PictureUnavailable, match="pip install matplotlib"):
            draw(report(history), path)
    else:
        draw(report(history), path)
        assert path.stat().st_size > 1000

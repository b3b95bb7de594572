"""What a plan says: simulated is called simulated, and advice follows the simulations."""

import json
from pathlib import Path

import pytest
from plans import families, make_prompts, make_report

from sglang.batch.plan.advice import Machine, advise
from sglang.batch.plan.answers import assume_answers
from sglang.batch.plan.prompts import BadLine
from sglang.batch.plan.report import SHOWN, Excerpt
from sglang.batch.plan.schedules import NotSimulated, Schedule

PROMPTS = make_prompts(families(dict.fromkeys(range(1, 21), 3)), cap=[1] * 60)
WORKLOAD = assume_answers(PROMPTS, output_tokens=None, longest=4096)[0]
MACHINE = Machine(8192, 0.97, 0.88, 9.6e9, 16e9, 1, True)


def times(**seconds: float) -> dict[Schedule, float]:
    """`policy_engine=seconds`."""
    return {Schedule(*name.split("_")): value for name, value in seconds.items()}


def test_every_time_is_called_simulated() -> None:
    lines = make_report(WORKLOAD, PROMPTS).text().splitlines()
    assert "all times are simulated" in lines[0]
    table = next(i for i, line in enumerate(lines) if "simulated seconds" in line)
    assert "fcfs (file order)" in lines[table + 1]
    assert lines[table + 1].endswith("100")


def test_gains_are_ratios_of_simulated_times() -> None:
    text = make_report(WORKLOAD, PROMPTS).text()
    assert next(line for line in text.splitlines() if "blend over fcfs" in line).endswith("1.25x")


def test_few_groups_are_shown_and_all_are_written(tmp_path: Path) -> None:
    report = make_report(WORKLOAD, PROMPTS)
    text = report.text()
    assert sum(" id" in line for line in text.splitlines()) == SHOWN
    assert f"and {20 - SHOWN} smaller ones" in text
    report.write_json(tmp_path / "plan.json")
    written = json.loads((tmp_path / "plan.json").read_text())
    assert len(written["groups"]) == 20
    assert written["seconds"]["blend"]["mixed"] == 80.0


def test_an_infinite_density_is_null_in_json(tmp_path: Path) -> None:
    make_report(WORKLOAD, PROMPTS, density=float("inf")).write_json(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["density"] is None


def test_an_excerpt_is_scaled_up_and_said_to_be_one() -> None:
    report = make_report(WORKLOAD, PROMPTS, excerpt=Excerpt(20, 1500, {"mixed": 3.0}))
    assert report.seconds("blend", "mixed") == 240.0
    text = report.text()
    assert "20 of 60 requests were simulated" in text
    assert "1.5 times the KV capacity, all need 5.0" in text


def test_without_simulations_the_bound_is_called_a_bound() -> None:
    text = make_report(WORKLOAD, PROMPTS, excerpt=None, simulated=()).text()
    assert "not simulated" in text
    assert "a bound, not a prediction" in text


def test_bad_lines_and_failed_simulations_are_named() -> None:
    bad = (BadLine(7, None, "invalid_json", "line 7 is not JSON"),)
    failed = (NotSimulated(Schedule("lpm", "mixed"), "RuntimeError: no"),)
    text = make_report(WORKLOAD, PROMPTS, bad_lines=bad, failed=failed).text()
    assert "line 7 is not JSON (invalid_json)" in text
    assert "lpm on mixed: not simulated: RuntimeError: no" in text


def test_flags_follow_the_fastest_schedule() -> None:
    seconds = times(
        fcfs_alternating=120, blend_alternating=110, fcfs_mixed=100, blend_mixed=80, blend_pdmux=60
    )
    advice = advise(seconds, MACHINE, everything_fits=False)
    assert "--schedule-policy blend --enable-mixed-chunk" in advice.command_line
    assert "1.25x over fcfs" in advice.flags[0].why
    assert "--schedule-policy blend --enable-pdmux" in advice.try_too[0].text
    assert "1.33x over the above (simulated)" in advice.try_too[0].why


def test_a_gain_within_the_models_error_earns_no_flag() -> None:
    seconds = times(fcfs_alternating=100, blend_alternating=99, blend_mixed=98.5, blend_pdmux=97)
    advice = advise(seconds, MACHINE, everything_fits=True)
    assert "--enable-mixed-chunk" not in advice.command_line
    assert not advice.try_too
    assert "within the model's error" in advice.flags[0].why
    assert "All requests fit" in advice.flags[0].why


def test_blend_is_not_recommended_where_it_is_slower() -> None:
    advice = advise(times(dfs_mixed=80, blend_mixed=100), MACHINE, everything_fits=False)
    assert "--schedule-policy fcfs" in advice.command_line
    assert "file sorted by prompt" in advice.flags[0].why
    assert "1.25x" in advice.flags[0].why


@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_the_chart_is_drawn_over_simulated_time(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from sglang.batch.plan.chart import draw_plan

    path = tmp_path / f"plan{suffix}"
    draw_plan(make_report(WORKLOAD, PROMPTS), path)
    assert path.stat().st_size > 5000
    if suffix == ".html":
        assert "all times are simulated" in path.read_text()

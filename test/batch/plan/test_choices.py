"""Numbers of replicas: the longest part decides, hours and prices add up, one of each GPU is recommended."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from plans import COST, families, make_prompts, make_report

from sglang.batch.plan import choices as module
from sglang.batch.plan.answers import assume_answers
from sglang.batch.plan.choices import Choice, GPUPool, choice_lines, find_choices, recommended
from sglang.batch.plan.gpus import optimum_seconds
from sglang.batch.plan.schedules import NotSimulated, Schedule, Simulated
from sglang.batch.plan.timeline import Timeline
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.step_time import StepTimeModel

NOBODY = cast(ProcessPoolExecutor, None)  # no simulation is asked for, or it is a made-up one
FLAT = Timeline(1.0, (0.5,), (0.5,))

PROMPTS = make_prompts(families({1: 20, 2: 20, 3: 20, 4: 20}), known=[20] * 80)
WORKLOAD = assume_answers(PROMPTS, output_tokens=None, longest=8192).workload


def pool(name: str) -> GPUPool:
    return GPUPool(name, WORKLOAD, PROMPTS.model, StepTimeModel(COST.shape, load_hardware(name)))


def find(*names: str, replicas: tuple[int, ...] = (1, 2, 4), **options: Any) -> list[Choice]:
    known = {"policy": "blend", "engines": ["mixed"], "limit": 0, "prices": {}} | options
    found = find_choices(NOBODY, [pool(name) for name in names], replicas, **known)
    return [choice for choice, failed in found if not failed]


def choice(hardware: str, replicas: int, seconds: float | None, **fields: Any) -> Choice:
    known: dict[str, Any] = {
        "tensor_parallel": 1,
        "requests": 80,
        "engine": "mixed",
        "simulated": 80,
        "longest": 80,
        "sharing_kept": 1.0,
        "price": None,
    }
    return Choice(hardware=hardware, replicas=replicas, seconds=seconds, **(known | fields))


def test_without_simulations_each_choice_has_the_bound_of_its_longest_part() -> None:
    one, two, four = find("h100")
    assert one.seconds == pytest.approx(optimum_seconds(WORKLOAD, pool("h100").times, "mixed"))
    seconds = [found.seconds or 0.0 for found in (one, two, four)]
    assert seconds[0] > seconds[1] > seconds[2] > 0.0
    assert seconds[1] >= seconds[0] / 2
    assert (one.simulated, two.longest, four.longest) == (0, 40, 20)
    assert 0.8 < four.sharing_kept <= two.sharing_kept <= one.sharing_kept == 1.0


def test_replicas_without_requests_are_no_obstacle() -> None:
    (many,) = find("h100", replicas=(200,))
    assert (many.replicas, many.longest) == (200, 1)


def test_an_excerpt_of_the_longest_part_is_simulated_and_scaled_by_the_work_that_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []

    def simulate_all(_: object, schedules: list[Schedule], part: Any, *__: object, **___: object) -> Any:
        sizes.append(len(part))
        for schedule in schedules:
            seconds = 3.0 * optimum_seconds(part, pool("h100").times, schedule.engine)
            yield Simulated(schedule, seconds, 0.5, 1, 0, 1000, 1.0, FLAT)

    monkeypatch.setattr(module, "simulate_all", simulate_all)
    bound = find("h100", replicas=(2,))[0]
    (two,) = find("h100", replicas=(2,), limit=10)
    assert sizes[0] < 40 == two.longest
    assert two.simulated == sizes[0]
    assert bound.seconds is not None
    assert two.seconds == pytest.approx(3.0 * bound.seconds)


def test_the_fastest_engine_counts_and_a_failed_simulation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def simulate_all(_: object, schedules: list[Schedule], *__: object, **___: object) -> Any:
        yield NotSimulated(schedules[0], "out of luck")
        for schedule, seconds in zip(schedules[1:], (7.0, 5.0), strict=True):
            yield Simulated(schedule, seconds, 0.5, 1, 0, 1000, 1.0, FLAT)

    monkeypatch.setattr(module, "simulate_all", simulate_all)
    engines = ["alternating", "mixed", "overlapped"]
    ((found, failed),) = find_choices(
        NOBODY, [pool("h100")], [1], policy="blend", engines=engines, limit=1000, prices={}
    )
    assert (found.engine, found.seconds) == ("overlapped", 5.0)
    assert [failure.reason for failure in failed] == ["out of luck"]


def test_hours_and_cost_are_of_all_gpus() -> None:
    four = choice("l4", 4, 1800.0, tensor_parallel=2, price=0.5)
    assert (four.gpus, four.gpu_hours, four.cost) == (8, 4.0, 2.0)
    assert four.text() == "8 x l4 for 30 min (2.00)"
    assert choice("l4", 4, 1800.0).cost is None


def test_the_soonest_end_of_those_that_cost_hardly_more_is_recommended_the_cheapest_gpu_first() -> None:
    h100 = [choice("h100", n, 6840.0 / n * loss, price=2.5) for n, loss in ((1, 1.0), (2, 1.2), (4, 1.5))]
    l4 = [choice("l4", n, 44_640.0 / n * loss, price=0.3) for n, loss in ((1, 1.0), (4, 1.01), (8, 1.2))]
    best = recommended([*h100, *l4])
    assert best == [l4[1], h100[0]]
    lines = "\n".join(choice_lines([*h100, *l4], 80))
    assert "recommended: 4 x l4 for 3.1 h (3.76), or 1 x h100 for 1.9 h (4.75)" in lines


def test_gpus_without_prices_stay_in_order_and_the_remedy_is_named() -> None:
    choices = [choice("l4", 1, 9000.0), choice("h100", 1, 900.0)]
    assert recommended(choices) == choices
    assert "--price GPU=AMOUNT" in "\n".join(choice_lines(choices, 80))


def test_what_failed_is_not_recommended_and_what_does_not_fit_is_said() -> None:
    failed, fits = choice("l4", 1, None, engine=None, requests=77), choice("h100", 1, 900.0)
    assert recommended([failed, fits]) == [fits]
    lines = "\n".join(choice_lines([failed, fits], 80))
    assert "3 requests do not fit on l4" in lines
    assert "not simulated" in lines


def test_an_excerpt_and_a_bound_are_named_as_such() -> None:
    excerpt = choice("l4", 2, 900.0, simulated=10, longest=40)
    assert "10 requests stand for all" in "\n".join(choice_lines([excerpt], 80))
    assert "practical optimum, a bound" in "\n".join(choice_lines([replace(excerpt, simulated=0)], 80))


def test_the_report_has_the_table_as_text_and_in_its_json(tmp_path: Path) -> None:
    report = make_report(WORKLOAD, PROMPTS, choices=(choice("h100", 2, 3600.0, price=2.5),))
    assert "2 x h100" in report.text()
    path = tmp_path / "plan.json"
    report.write_json(path)
    assert '"gpu_hours": 2.0' in path.read_text()
    assert report.text().count("recommended: ") == 1

"""Step times correct the hardware profile: when, by how much, and alike on every rank."""

import logging
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from models import LLAMA_3_8B
from sglang.srt.blend.core.cost.correction import AS_TOLD, Correction
from sglang.srt.blend.core.cost.engines import load_engine
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.step_fit import WINDOW, StepFit
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork
from sglang.srt.blend.runtime.measured_hardware import MeasuredHardware
from sglang.srt.blend.runtime.step_work import Work
from sglang.srt.blend.runtime.stopwatch import Stopwatch

SHAPE = ModelShape.from_config(LLAMA_3_8B)


def works(seed: int, count: int) -> list[Work]:
    rng = np.random.default_rng(seed)
    return [
        {
            "prefill_tokens": int(rng.choice([0, 256, 2048])),
            "decode_rows": int(rng.integers(1, 300)),
            "kv_tokens": int(rng.integers(1_000, 300_000)),
        }
        for _ in range(count)
    ]


@dataclass
class Rank:
    """A rank that keeps what it adopts; `heard` is what the first rank has said."""

    told: str
    decides: bool = True
    heard: list[Correction] = field(default_factory=list)
    adopted: list[Correction] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.measured = MeasuredHardware(
            StepFit(SHAPE, load_hardware(self.told), "mixed"),
            adopt=lambda _fit, correction: self.adopted.append(correction),
            agree=self._agree,
            decides=self.decides,
        )

    def _agree(self, mine: Correction) -> Correction:
        if self.decides:
            self.heard.append(mine)
            return mine
        return self.heard.pop(0)


def run(rank: Rank, steps: list[Work], *, noise: float, seed: int = 0, device: str = "a100-80gb") -> None:
    truth, rng = StepTimeModel(SHAPE, load_hardware(device)), np.random.default_rng(seed)
    for work in steps:
        seconds = float(load_engine("mixed")(truth, StepWork(**work)))
        rank.measured.add(work, seconds * float(np.exp(noise * rng.standard_normal())))
        rank.measured.correct()


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_a_right_profile_is_never_touched(noise):
    rank = Rank("a100-80gb")
    run(rank, works(0, 3 * WINDOW), noise=noise)
    assert rank.adopted == []
    assert rank.measured.correction is AS_TOLD


@pytest.mark.parametrize("told", ["h100", "l40s"])
def test_a_wrong_profile_is_corrected_within_twenty_steps_and_then_left_alone(told):
    rank = Rank(told)
    run(rank, works(0, 20), noise=0.03)
    assert len(rank.adopted) == 1
    run(rank, works(1, 4 * WINDOW), noise=0.03)
    assert len(rank.adopted) < 6
    assert rank.measured.report().error < 0.1


def test_what_no_correction_explains_is_looked_at_ever_more_seldom():
    rank = Rank("a100-80gb")
    run(rank, works(0, 40 * WINDOW), noise=1.0)
    assert set(rank.heard[4:]) == {rank.measured.correction}
    assert 10 <= len(rank.heard) < 20  # and not once in a window


def test_ranks_adopt_the_same_at_the_same_step_whatever_their_clocks_say():
    first, steps = Rank("h100"), works(0, 600)
    second = Rank("h100", decides=False, heard=first.heard)
    seen: list[tuple[Correction, Correction]] = []
    rng = np.random.default_rng(1)
    for work in steps:
        for rank in (first, second):
            rank.measured.add(work, float(rng.uniform(1e-3, 1.0)))
            rank.measured.correct()
        seen.append((first.measured.correction, second.measured.correction))
    assert first.adopted
    assert all(one == other for one, other in seen)
    assert first.adopted == second.adopted
    assert first.heard == []  # every word was waited for


def test_single_steps_that_take_a_hundred_times_as_long_do_not_make_a_profile_wrong():
    rank, truth = Rank("a100-80gb"), StepTimeModel(SHAPE, load_hardware("a100-80gb"))
    for number, work in enumerate(works(0, 2 * WINDOW)):
        seconds = float(load_engine("mixed")(truth, StepWork(**work)))
        rank.measured.add(work, 100.0 * seconds if number < 4 or number % 40 == 0 else seconds)
        rank.measured.correct()
    assert rank.adopted == []


def test_the_report_compares_predicted_and_real_seconds():
    rank = Rank("h100")
    run(rank, works(0, 15), noise=0.0)
    before = rank.measured.report()
    assert before.steps == 11  # the first four are not looked at
    assert before.predicted_seconds < 0.7 * before.seconds
    run(rank, works(1, 2 * WINDOW), noise=0.0)
    after = rank.measured.report()
    later = after.predicted_seconds - before.predicted_seconds
    assert later == pytest.approx(after.seconds - before.seconds, rel=0.1)
    assert f"compute x {after.compute:.2f}" in after.line


def test_the_end_of_a_long_pool_is_logged_once_when_the_next_step_begins(caplog):
    """Not before: whoever gets the last answer may empty the cache at once; a busy scheduler refuses."""
    rank = Rank("a100-80gb")
    run(rank, works(0, WINDOW + 10), noise=0.0)
    with caplog.at_level(logging.INFO):
        rank.measured.pool_ended()
        assert not caplog.records
        rank.measured.correct()
        rank.measured.pool_ended()
        rank.measured.correct()
    assert [record.getMessage().split(" for ")[1] for record in caplog.records] == [
        "a100-80gb, as its profile says"
    ]


# ---------------------------------------------------------------- stopwatch


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def decoding(rows: int) -> SimpleNamespace:
    return SimpleNamespace(
        forward_mode=SimpleNamespace(is_extend=lambda: False),
        reqs=[None] * rows,
        seq_lens_cpu=np.full(rows, 10),
    )


@pytest.fixture
def watch(monkeypatch):
    clock, ended = Clock(), []
    monkeypatch.setattr("time.perf_counter", clock)
    return clock, ended, Stopwatch(lambda work, seconds: ended.append((work["decode_rows"], seconds)))


def test_a_pass_lasts_from_its_launch_to_its_result_and_idle_time_is_nobodys(watch):
    clock, ended, stopwatch = watch
    for launched, done in ((1.0, 3.0), (100.0, 101.0)):
        clock.now = launched
        stopwatch.launching(decoding(1))
        stopwatch.launched()
        clock.now = done
        stopwatch.result()
    assert ended == [(1, 2.0), (1, 1.0)]


def test_a_pass_that_was_launched_beside_another_lasts_from_the_others_result(watch):
    clock, ended, stopwatch = watch
    stopwatch.launching(decoding(1))  # at 0
    clock.now = 0.5
    stopwatch.launching(decoding(2))
    clock.now = 2.0
    stopwatch.result()
    clock.now = 2.5
    stopwatch.launching(decoding(3))
    clock.now = 5.0
    stopwatch.result()
    assert ended == [(1, 2.0), (2, 3.0)]


def test_a_simulated_pass_has_ended_when_it_is_launched():
    clock, ended = Clock(), []
    stopwatch = Stopwatch(lambda work, seconds: ended.append((work["decode_rows"], seconds)), clock)
    for rows in (1, 2):
        stopwatch.launching(decoding(rows))
        clock.now += float(rows)
        stopwatch.launched()
    stopwatch.result()
    assert ended == [(1, 1.0), (2, 2.0)]

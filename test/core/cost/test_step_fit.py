"""A device's correction from its own steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import LLAMA_3_8B
from sglang.srt.blend.core.cost.correction import AS_TOLD, FARTHEST, Correction
from sglang.srt.blend.core.cost.engines import load_engine
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.step_fit import WINDOW, StepFit, StepTimes
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork

SHAPE = ModelShape.from_config(LLAMA_3_8B)
ENGINES = ("alternating", "mixed", "overlapped")


def fit_of(hardware: str, engine: str = "mixed") -> StepFit:
    return StepFit(SHAPE, load_hardware(hardware), engine)


def steps_of(
    truth: StepTimeModel, engine: str, seed: int, *, noise=0.0, outliers=0.0, count=200
) -> StepTimes:
    """Steps from few decode rows to full chunks, as `truth` times them; outliers take ten times as long."""
    rng, steps = np.random.default_rng(seed), StepTimes()
    for _ in range(count):
        tokens = float(rng.choice([0, rng.integers(1, 512), rng.integers(512, 8192)]))
        rows = int(rng.integers(1, 400))
        work = {
            "prefill_tokens": tokens,
            "prefill_pairs": tokens * 300.0,
            "finished_prefills": tokens // 400,
            "decode_rows": rows,
            "kv_tokens": rows * float(rng.integers(100, 2000)),
        }
        seconds = float(load_engine(engine)(truth, StepWork(**work)))
        seconds *= np.exp(noise * rng.standard_normal()) * (10.0 if rng.random() < outliers else 1.0)
        steps.add(work, seconds)
    return steps


factors = st.floats(0.2, 5.0)


@settings(max_examples=25, deadline=None)
@given(factors, factors, st.sampled_from(ENGINES), st.sampled_from(["a100-80gb", "l40s"]), st.integers(0, 99))
def test_factors_are_found_among_noise_and_outliers(compute, memory, engine, hardware, seed):
    truth = StepTimeModel(SHAPE, load_hardware(hardware), correction=Correction(compute, memory))
    steps = steps_of(truth, engine, seed, noise=0.05, outliers=0.05)
    fit = fit_of(hardware, engine)
    found = fit.fit(steps, AS_TOLD)
    # Where one of the two is hidden behind the other, no step shows it: then times are right all the same.
    assert np.median(np.abs(fit.errors(steps, found))) < 0.06
    if engine != "overlapped":
        assert found.compute == pytest.approx(compute, rel=0.15)
        assert found.memory == pytest.approx(memory, rel=0.15)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("told", ["h100", "l40s", "b200", "l4", "mi300x"])
def test_any_accelerators_profile_becomes_that_of_the_device(told, engine):
    truth = StepTimeModel(SHAPE, load_hardware("a100-80gb"))
    steps = steps_of(truth, engine, 0, noise=0.05)
    fit = fit_of(told, engine)
    found = fit.fit(steps, AS_TOLD)
    assert np.abs(fit.errors(steps, AS_TOLD)).mean() > 0.15
    assert np.abs(fit.errors(steps, found)).mean() < 0.09
    hardware = fit.times(found).hardware
    assert hardware.flops / hardware.bandwidth == pytest.approx(
        truth.hardware.flops / truth.hardware.bandwidth, rel=0.25
    )


def paced_steps(truth: StepTimeModel, rows: int) -> StepTimes:
    """Four steps that fill a batch, and many that go on with so many rows in the end, hardly different."""
    rng, steps = np.random.default_rng(0), StepTimes()
    for number in range(400):
        decoding = int(rng.integers(150, 190))
        prefill = 2048 - decoding if number < 4 else rows - decoding + int(rng.integers(0, 5))
        work = {
            "prefill_tokens": prefill,
            "prefill_pairs": 300.0 * prefill,
            "decode_rows": decoding,
            "kv_tokens": decoding * (300.0 + number),
        }
        steps.add(work, float(load_engine("mixed")(truth, StepWork(**work))) * np.exp(rng.normal(0.0, 0.02)))
    return steps


@pytest.mark.parametrize(("told", "tiled"), [("l40s", True), ("b200", True), ("cpu", False)])
def test_a_gpu_without_a_table_is_expected_to_work_on_whole_tiles(told, tiled):
    """Steps of 207 rows do not show that 256 take no longer; taken for smooth, they were never tried."""
    fit = fit_of(told)
    factors = Correction(1.2, 0.5) if told == "cpu" else AS_TOLD
    truth = StepTimeModel(SHAPE, load_hardware("cpu" if told == "cpu" else "a100-80gb"), correction=factors)
    assert fit.fit(paced_steps(truth, 207), AS_TOLD).tiled is tiled


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 500), st.floats(1e-9, 1e9)), min_size=1))
def test_whatever_the_times_the_correction_stays_within_bounds(rows):
    steps = StepTimes()
    for tokens, decoding, seconds in rows:
        steps.add({"prefill_tokens": tokens + 1, "decode_rows": decoding}, seconds)
    found = fit_of("a100-80gb").fit(steps, AS_TOLD)
    assert np.all(np.abs(found.logs) <= np.log(FARTHEST) + 1e-12)


def test_what_no_step_shows_stays_as_it_was():
    """Passes of 8,192 prompt tokens say next to nothing of the memory."""
    truth = StepTimeModel(SHAPE, load_hardware("a100-80gb"), correction=Correction(compute=2.0, memory=3.0))
    steps = StepTimes()
    for _ in range(50):
        work = {"prefill_tokens": 8192.0, "prefill_pairs": 4e6, "finished_prefills": 8.0}
        steps.add(work, float(load_engine("mixed")(truth, StepWork(**work))))
    found = fit_of("a100-80gb").fit(steps, Correction(memory=1.5))
    assert found.compute == pytest.approx(2.0, rel=0.1)
    assert found.memory == pytest.approx(1.5, rel=0.25)


def test_what_no_step_shows_is_likely_to_be_wrong_with_the_rest_unless_it_was_timed():
    """An A100 told it is a B200 has an eighth of its compute, behind which passes hide its slower memory."""
    truth, steps = StepTimeModel(SHAPE, load_hardware("a100-80gb")), StepTimes()
    for rows in range(1000, 2000, 20):
        work = {
            "prefill_tokens": rows,
            "prefill_pairs": 300.0 * rows,
            "decode_rows": 100,
            "kv_tokens": 20_000.0,
        }
        steps.add(work, float(load_engine("overlapped")(truth, StepWork(**work))))
    fit, timed = fit_of("b200", "overlapped"), Correction(memory=1.001)
    assert 1.5 * fit.fit(steps, timed).memory < fit.fit(steps, AS_TOLD).memory < 8.0


@pytest.mark.parametrize("hardware", ["a100-80gb", "l40s"])
def test_a_profile_as_told_gives_the_same_times_to_the_last_bit(hardware):
    work = StepWork(prefill_tokens=np.arange(0, 4096, 77), decode_rows=100, kv_tokens=90_000)
    plain = StepTimeModel(SHAPE, load_hardware(hardware))
    told = StepTimeModel(SHAPE, load_hardware(hardware), correction=Correction())
    assert np.array_equal(load_engine("mixed")(plain, work), load_engine("mixed")(told, work))


def test_a_table_slows_down_where_its_device_does():
    """Few rows wait for weights, many for FLOPs."""
    plain = StepTimeModel(SHAPE, load_hardware("a100-80gb"))
    less_memory = StepTimeModel(SHAPE, load_hardware("a100-80gb"), correction=Correction(memory=2.0))
    less_compute = StepTimeModel(SHAPE, load_hardware("a100-80gb"), correction=Correction(compute=2.0))
    assert float(less_memory.gemm(1) / plain.gemm(1)) == pytest.approx(2.0, rel=0.02)
    assert float(less_memory.gemm(8192) / plain.gemm(8192)) == pytest.approx(1.0, rel=0.05)
    assert float(less_compute.gemm(1) / plain.gemm(1)) == pytest.approx(1.0, rel=0.02)
    assert float(less_compute.gemm(8192) / plain.gemm(8192)) == pytest.approx(2.0, rel=0.05)


def test_a_factor_beyond_reason_is_refused():
    with pytest.raises(ValueError, match="memory x 100"):
        Correction(memory=100.0)


def test_the_last_steps_can_be_looked_at_alone():
    steps = StepTimes()
    for number in range(WINDOW + 10):
        steps.add({"decode_rows": 1}, number + 1.0)
    assert sorted(steps.last(3).seconds) == [WINDOW + 8.0, WINDOW + 9.0, WINDOW + 10.0]
    assert len(steps.last(1000)) == WINDOW


def test_steps_that_are_kept_are_spread_over_the_whole_run_and_among_them_are_the_last():
    steps = StepTimes()
    for number in range(10_000):
        steps.add({"decode_rows": 1}, number + 1.0)
    kept = np.unique(steps.seconds)
    assert len(steps) <= 2 * WINDOW
    assert set(range(10_001 - WINDOW, 10_001)) <= set(kept.astype(int).tolist())
    assert np.diff(kept, prepend=0.0).max() <= 10_000 / (WINDOW // 2)

"""The fit finds the hardware that made the measurements, and others read the profile it writes."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from benchmark.gpu.__main__ import FULL, write_profile
from benchmark.gpu.error import error_table, errors_by_kind, predicted
from benchmark.gpu.layer import LLAMA_3_8B, Layer
from benchmark.gpu.machine import Machine, find_machine
from benchmark.gpu.points import (
    ALL_REDUCE,
    DECODE,
    DECODE_PART,
    DIVIDED,
    GEMM,
    GEMM_PART,
    PREFILL,
    TOGETHER,
    Point,
    of_kind,
    read_points,
    write_points,
)
from benchmark.gpu.profile import fit

from sglang.batch.usage import BadUsage
from sglang.srt.blend.core.cost.hardware import Hardware, load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.runtime.arguments import BlendOptions

LAYER = Layer.of(LLAMA_3_8B)
H100 = load_hardware("h100")
TRUE = Hardware(
    "true",
    H100.flops,
    H100.bandwidth,
    H100.memory,
    gemm_efficiency=0.7,
    bandwidth_efficiency=0.9,
    multiprocessors=132,
    compute_capability=9.0,
    link=4.5e11,
    sm_bandwidth=0.9 * H100.bandwidth / 132 / 0.5,
    assumed={
        "prefill_attention_efficiency": 0.6,
        "interference": 0.23,
        "all_reduce_efficiency": 0.61,
        "all_reduce_latency": 20e-6,
    },
)
"""The GPU that made the measurements, as the model describes it."""


def machine(name: str) -> Machine:
    return replace(
        find_machine("cpu"), name=name, memory=8e10, multiprocessors=132, compute_capability=9.0, count=2
    )


def made_by(hardware: Hardware) -> list[Point]:
    """The whole grid as the model has it on this hardware."""
    return [replace(p, seconds=predicted(p, LAYER, hardware)) for p in _grid(hardware)]


def _grid(hardware: Hardware) -> Iterator[Point]:
    for rows in FULL.rows[::4]:
        yield Point(GEMM, 0.0, rows=rows)
    for requests, length in FULL.pools[::5]:
        yield Point(DECODE, 0.0, requests=requests, kv_tokens=requests * length)
    for new, cached in FULL.chunks:
        yield Point(PREFILL, 0.0, requests=1, new_tokens=new, cached_tokens=cached)
    for rows in FULL.reduced:
        yield Point(ALL_REDUCE, 0.0, rows=rows, ranks=2)
    for rows, requests, length in FULL.pairs[:2]:
        work = {"rows": rows, "requests": requests, "kv_tokens": requests * length}
        for kind, sms in ((TOGETHER, 0), (DIVIDED, 88), (DIVIDED, 112)):
            parts = {"compute_sms": sms, "memory_sms": 132 - sms} if sms else {}
            gemm, decode = Point(GEMM_PART, 0.0, **work, **parts), Point(DECODE_PART, 0.0, **work, **parts)
            alone = {
                "compute_alone": predicted(gemm, LAYER, hardware),
                "memory_alone": predicted(decode, LAYER, hardware),
            }
            yield Point(kind, 0.0, **work, **parts, **alone)
            if sms:
                yield from (gemm, decode)


@pytest.fixture(scope="module")
def points() -> list[Point]:
    return made_by(TRUE)


@pytest.fixture(scope="module")
def fitted(points: list[Point]) -> Hardware:
    return fit(points, LAYER, machine("NVIDIA H100 80GB HBM3"), "mine")


def test_the_fit_finds_the_hardware_that_made_the_measurements(fitted: Hardware) -> None:
    assert fitted.name == "mine"
    assert fitted.measured
    for name in ("flops", "bandwidth", "memory", "link", "multiprocessors"):
        assert getattr(fitted, name) == getattr(TRUE, name)
    for name in ("gemm_efficiency", "bandwidth_efficiency", "sm_bandwidth"):
        assert getattr(fitted, name) == pytest.approx(getattr(TRUE, name), rel=0.02)
    assert fitted.assumed.keys() == TRUE.assumed.keys()
    for name, value in TRUE.assumed.items():
        assert fitted.assumed[name] == pytest.approx(value, rel=0.05)


def test_the_model_has_no_error_on_its_own_measurements(points: list[Point]) -> None:
    errors = errors_by_kind(points, LAYER, TRUE)
    assert len(errors) == 8
    assert max(error.worst for error in errors) < 1e-9


def test_errors_are_relative_and_name_the_worst_point(points: list[Point]) -> None:
    slow = replace(points[1], seconds=points[1].seconds * 2.0)
    (error,) = errors_by_kind([points[0], slow, points[2]], LAYER, TRUE)
    assert (error.median, error.mean) == (0.0, pytest.approx(0.5 / 3))
    assert (error.worst, error.where) == (pytest.approx(0.5), str(slow))


def test_an_unknown_gpu_gets_the_rates_that_were_reached(points: list[Point]) -> None:
    own = fit(points, LAYER, machine("NVIDIA Z9"), "z9")
    assert own.bandwidth == pytest.approx(0.9 * H100.bandwidth)
    assert 0.6 * H100.flops < own.flops <= 0.7 * H100.flops
    sent = [p.rows * 4096 * 2 / p.seconds for p in of_kind(points, ALL_REDUCE)]
    assert own.link == pytest.approx(max(sent))
    with pytest.raises(BadUsage, match="NVIDIA Z9 has no built-in profile, so gemm and decode"):
        fit(of_kind(points, GEMM), LAYER, machine("NVIDIA Z9"), "z9")


def test_what_a_kernel_takes_to_start_does_not_count_as_bandwidth(points: list[Point]) -> None:
    # More small pools than large ones, at 0.6 of the bandwidth.
    small = [Point(DECODE, 1.04e-6 * n, kv_tokens=512 * n) for n in range(1, 20)]
    slow = [*of_kind(points, DECODE), *small]
    fitted = fit(slow, LAYER, machine("NVIDIA H100 80GB HBM3"), "mine")
    assert fitted.bandwidth_efficiency == pytest.approx(0.9, rel=0.01)


def test_what_was_not_measured_stays_as_the_datasheet_has_it(points: list[Point]) -> None:
    part = fit(of_kind(points, DECODE), LAYER, machine("NVIDIA H100 80GB HBM3"), "part")
    assert part.bandwidth_efficiency == pytest.approx(0.9, rel=0.01)
    assert (part.gemm_efficiency, part.assumed) == (H100.gemm_efficiency, {})


def test_kinds_that_the_profile_cannot_model_say_so(points: list[Point]) -> None:
    plain = Hardware("plain", 1e15, 3e12, 8e10)
    table = error_table(points, LAYER, [H100, plain])
    assert "worst of all-reduce: not modelled: hardware profile 'plain': no link rate" in table
    assert "nan" not in table


def test_the_written_profile_is_read_by_blend_hardware_and_plan(
    tmp_path: Path, points: list[Point], fitted: Hardware
) -> None:
    write_profile(tmp_path, points, LAYER, machine("NVIDIA H100 80GB HBM3"))
    path = tmp_path / "measured-nvidia-h100-80gb-hbm3.toml"
    assert BlendOptions(hardware=str(path)).hardware == str(path)
    read = load_hardware(str(path))
    assert read.name == path.stem
    for field in fields(Hardware)[1:]:
        expected = getattr(fitted, field.name)
        if isinstance(expected, float):
            assert getattr(read, field.name) == pytest.approx(expected, rel=1e-3)
        elif field.name == "assumed":
            assert read.assumed == pytest.approx(dict(expected), rel=1e-3)
        else:
            assert getattr(read, field.name) == expected
    llama = {**LLAMA_3_8B, "vocab_size": 128256}
    times = StepTimeModel(ModelShape.from_config(llama, tensor_parallel=2), read)
    assert times.assumptions.interference == pytest.approx(TRUE.assumed["interference"], rel=0.05)
    assert float(times.all_reduce(1)) > 0.0
    table = (tmp_path / "error.txt").read_text()
    assert table.splitlines()[0].split()[-2:] == ["h100", path.stem]


def test_the_table_of_measurements_is_read_as_it_was_written(tmp_path: Path, points: list[Point]) -> None:
    write_points(tmp_path / "points.csv", points)
    assert read_points(tmp_path / "points.csv") == points

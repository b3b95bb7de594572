"""The step-time model against measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from statistics import fmean, median

import numpy as np
from benchmark.gpu.layer import Layer
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
)

from sglang.srt.blend.core.cost.engines import overlap
from sglang.srt.blend.core.cost.hardware import Hardware
from sglang.srt.blend.core.cost.pdmux import Load, PdmuxTimes
from sglang.srt.blend.core.cost.step_time import StepParts, StepTimeModel, StepWork, causal_pairs
from sglang.srt.blend.core.cost.two_streams import Stream, TwoStreams


class NotModelled(Exception):
    """The model cannot say what a measurement takes on this profile; the message says why."""


def predicted(point: Point, layer: Layer, hardware: Hardware, *, alone_as_measured: bool = False) -> float:
    """Seconds that the model gives for a measurement.

    Args:
        alone_as_measured: of what ran at once take the measured times alone, not the model's, so that only
            what they do to each other is predicted.

    Raises:
        NotModelled: the profile lacks what is needed (links, SMs).
    """
    try:
        model = StepTimeModel(layer.shape(point.ranks), hardware)
        if point.kind == GEMM:
            return float(model.gemm(point.rows))
        if point.kind == DECODE:
            return float(model.decode_attention(point.kv_tokens))
        if point.kind == PREFILL:
            pairs = causal_pairs(point.new_tokens, point.cached_tokens)
            return float(model.prefill_attention(point.requests * pairs))
        if point.kind == ALL_REDUCE:
            return float(model.all_reduce(point.rows)) / 2.0  # a layer reduces twice
        if point.kind == TOGETHER:
            return _together(point, model, alone_as_measured)
        prefill, decode = _loads(point, PdmuxTimes(model))
        if point.kind == GEMM_PART:
            return float(prefill.seconds)
        if point.kind == DECODE_PART:
            return float(decode.seconds)
        assert point.kind == DIVIDED, point.kind
        return _divided(point, PdmuxTimes(model), prefill, decode, alone_as_measured)
    except ValueError as error:
        raise NotModelled(str(error)) from error


def _together(point: Point, model: StepTimeModel, alone_as_measured: bool) -> float:
    """As an overlapping engine runs them."""
    compute = point.compute_times * model.gemm(point.rows)
    memory = point.memory_times * model.decode_attention(point.kv_tokens)
    if alone_as_measured:
        compute, memory = np.asarray(point.compute_alone), np.asarray(point.memory_alone)
    none = np.zeros(())
    parts = StepParts(
        gemm=compute,
        other=none,
        prefill_attention=none,
        decode_attention=memory,
        all_reduce=none,
        weight_read=np.minimum(point.compute_times * model.weight_read, compute),
        overhead=none,
    )
    return float(overlap(parts, model.assumptions.interference))


def _loads(point: Point, times: PdmuxTimes) -> tuple[Load, Load]:
    """GEMMs and decode attention, once, each on its SMs; what a point does not have is on all of them."""
    layer = times.times
    gemm = times.load(StepWork(prefill_tokens=point.rows), point.compute_sms or times.total)
    # Rows that decode would bring GEMMs along; KV tokens alone are attention alone.
    decode = times.load(StepWork(kv_tokens=point.kv_tokens), point.memory_sms or times.total)
    assert layer.shape.head_params == 0.0
    return gemm, decode


def _divided(point: Point, times: PdmuxTimes, gemm: Load, decode: Load, alone_as_measured: bool) -> float:
    """As PD multiplexing runs them: each on its part, one of which idles in the end."""
    compute, memory = point.compute_times * gemm.seconds, point.memory_times * decode.seconds
    if alone_as_measured:
        compute, memory = np.asarray(point.compute_alone), np.asarray(point.memory_alone)
    streams = TwoStreams(times)
    streams.launch(Stream.PREFILL, Load(compute, gemm.bus))
    streams.launch(Stream.DECODE, Load(memory, decode.bus))
    streams.wait(Stream.PREFILL)
    streams.wait(Stream.DECODE)
    return streams.now


def relative_error(
    point: Point, layer: Layer, hardware: Hardware, *, alone_as_measured: bool = False
) -> float:
    """What is predicted by what was measured, less 1: 0 is right, 1 twice as long.

    Raises:
        NotModelled: as of `predicted`.
    """
    return predicted(point, layer, hardware, alone_as_measured=alone_as_measured) / point.seconds - 1.0


@dataclass(frozen=True, slots=True)
class KindError:
    """Relative errors of one kind of measurement, without sign.

    Attributes:
        count: measurements.
        median, mean, worst: of their errors; NaN where nothing is modelled.
        where: the worst one, or why nothing is modelled.
    """

    kind: str
    count: int
    median: float
    mean: float
    worst: float
    where: str


def errors_by_kind(points: Sequence[Point], layer: Layer, hardware: Hardware) -> list[KindError]:
    """Errors of each kind, in the order in which they were measured."""
    found = []
    for kind in dict.fromkeys(point.kind for point in points):
        some = [point for point in points if point.kind == kind]
        try:
            errors = [abs(relative_error(point, layer, hardware)) for point in some]
        except NotModelled as reason:
            found.append(KindError(kind, len(some), nan, nan, nan, f"not modelled: {reason}"))
            continue
        worst = max(range(len(some)), key=errors.__getitem__)
        found.append(
            KindError(kind, len(some), median(errors), fmean(errors), errors[worst], str(some[worst]))
        )
    return found


def error_table(points: Sequence[Point], layer: Layer, profiles: Sequence[Hardware]) -> str:
    """Write median and worst error of each kind for each profile."""
    by_profile = [errors_by_kind(points, layer, hardware) for hardware in profiles]
    titles = "".join(f"  {hardware.name:>38}" for hardware in profiles)
    lines = [f"{'error of the model':<30}{titles}"]
    lines.append(f"{'':<22}{'points':>8}" + f"{'median':>31}{'worst':>9}" * len(profiles))
    for row in zip(*by_profile, strict=True):
        cells = "".join(f"{e.median:>31.1%}{e.worst:>9.1%}" for e in row).replace("nan%", "   -")
        lines.append(f"{row[0].kind:<22}{row[0].count:>8}{cells}")
    lines += [f"worst of {e.kind}: {e.where}" for e in by_profile[-1]]
    return "\n".join(lines)

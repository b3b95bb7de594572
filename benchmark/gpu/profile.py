"""The hardware profile that fits measurements best: each figure is tried in the step-time model itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
from benchmark.gpu.error import NotModelled, relative_error
from benchmark.gpu.layer import Layer
from benchmark.gpu.machine import Machine
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
)

from sglang.batch.usage import BadUsage
from sglang.srt.blend.core.cost.gemm_profile import kernel_figures
from sglang.srt.blend.core.cost.hardware import Hardware, load_hardware
from sglang.srt.blend.core.cost.step_time import Assumptions

SHARES = np.linspace(0.01, 1.0, 199)
"""Efficiencies and shares that are tried."""

LARGE = 64 << 20
"""Bytes from which decode attention tells the bandwidth; below, starting the kernel is most of its time."""

Change = Callable[[Hardware, float], Hardware]


def datasheet(machine: Machine) -> Hardware | None:
    """The built-in profile of this GPU, None where its name is unknown."""
    try:
        return load_hardware(machine.name)
    except ValueError:
        return None


def fit(points: Sequence[Point], layer: Layer, machine: Machine, name: str) -> Hardware:
    """The profile with the least mean relative error, figure by figure.

    Peaks are the datasheet's where the GPU is known, and otherwise the highest rates that were reached.
    Figures of kinds that were not measured stay as they are. A GPU's GEMM tables go with its built-in
    profile's name, so the new one uses none.

    Args:
        name: of the profile.

    Raises:
        BadUsage: the GPU is unknown, and GEMMs or decode attention were not measured.
    """
    known = datasheet(machine)
    source = f"measured: benchmark.gpu on {machine.name}"
    hardware = replace(known or reached(points, layer, machine), name=name, measured=True, source=source)
    hardware = replace(hardware, link=hardware.link or _known_link(known))
    large = [point for point in of_kind(points, DECODE) if point.kv_tokens * layer.kv_bytes >= LARGE]
    hardware = _best(hardware, large, layer, [DECODE], SHARES, _figure("bandwidth_efficiency"))
    hardware = _best(hardware, points, layer, [GEMM], SHARES, _figure("gemm_efficiency"))
    hardware = _best(hardware, points, layer, [PREFILL], SHARES, _assume("prefill_attention_efficiency"))
    hardware = _fit_links(hardware, points, layer)
    if hardware.multiprocessors:
        whole = 0.9 * hardware.bandwidth / hardware.multiprocessors  # of one SM if bandwidth grew to the end
        rates = whole / np.linspace(0.2, 0.9, 71)
        hardware = _best(hardware, points, layer, [GEMM_PART, DECODE_PART], rates, _figure("sm_bandwidth"))
    shares = np.linspace(0.0, 1.0, 101)
    return _best(hardware, points, layer, [TOGETHER, DIVIDED], shares, _assume("interference"))


def reached(points: Sequence[Point], layer: Layer, machine: Machine) -> Hardware:
    """A profile of the highest rates that were reached, of which nothing is taken off for efficiency.

    Raises:
        BadUsage: GEMMs or decode attention were not measured.
    """
    gemm, decode = of_kind(points, GEMM), of_kind(points, DECODE)
    if not gemm or not decode:
        raise BadUsage(
            f"--only: {machine.name} has no built-in profile, so gemm and decode must be measured for one"
        )
    return Hardware(
        machine.name,
        flops=max(2.0 * layer.params * point.rows / point.seconds for point in gemm),
        bandwidth=max(layer.kv_bytes * point.kv_tokens / point.seconds for point in decode),
        memory=machine.memory,
        gemm_efficiency=1.0,
        bandwidth_efficiency=1.0,
        multiprocessors=machine.multiprocessors,
        compute_capability=machine.compute_capability,
    )


def _best(
    hardware: Hardware,
    points: Sequence[Point],
    layer: Layer,
    kinds: Sequence[str],
    candidates: Sequence[float] | np.ndarray,  # type: ignore[type-arg]
    change: Change,
) -> Hardware:
    """The profile changed to the candidate whose mean error over some kinds is the least."""
    some = of_kind(points, *kinds)
    if not some:
        return hardware
    try:
        return min(
            (change(hardware, float(candidate)) for candidate in candidates),
            key=lambda tried: _mean_error(some, layer, tried),
        )
    except NotModelled:
        return hardware


def _mean_error(points: Sequence[Point], layer: Layer, hardware: Hardware) -> float:
    return fmean(abs(relative_error(point, layer, hardware, alone_as_measured=True)) for point in points)


def _fit_links(hardware: Hardware, points: Sequence[Point], layer: Layer) -> Hardware:
    """Share of the links' rate, and latency; where the rate is not known it is what was reached at most."""
    some = of_kind(points, ALL_REDUCE)
    if not some:
        return hardware
    if not hardware.link:
        sent = (2.0 * (p.ranks - 1) / p.ranks * p.rows * layer.hidden * 2.0 / p.seconds for p in some)
        hardware = replace(hardware, link=max(sent))
    shortest = min(point.seconds for point in some)
    tried = (
        _best(
            _assume("all_reduce_latency")(hardware, latency),
            some,
            layer,
            [ALL_REDUCE],
            SHARES[::4],
            _assume("all_reduce_efficiency"),
        )
        for latency in np.linspace(0.0, shortest, 26).tolist()
    )
    return min(tried, key=lambda one: _mean_error(some, layer, one))


def _known_link(known: Hardware | None) -> float:
    return float(kernel_figures()["links"].get(known.name, 0.0)) if known else 0.0


def _figure(name: str) -> Change:
    return lambda hardware, value: replace(hardware, **{name: value})  # type: ignore[arg-type]


def _assume(name: str) -> Change:
    Assumptions.default(**{name: 0.0})  # raises if it is unknown
    return lambda hardware, value: replace(hardware, assumed={**hardware.assumed, name: value})

"""GEMMs and decode attention at once, on two streams: how much they slow each other down.

First both have the whole GPU, then each a part of its SMs, for which it is also timed alone. Either runs as
often as the other lasts, so that nobody is alone for long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from benchmark.gpu.decode import attention
from benchmark.gpu.gemm import products
from benchmark.gpu.green_contexts import NotDivided
from benchmark.gpu.layer import Layer
from benchmark.gpu.machine import Machine
from benchmark.gpu.points import DECODE_PART, DIVIDED, GEMM_PART, TOGETHER, Point
from benchmark.gpu.timing import Streams

from sglang.srt.blend.core.cost.hardware import Hardware
from sglang.srt.blend.core.cost.pdmux import own_divisions

LEAST_SECONDS = 4e-3
"""Time that either takes at least."""

MOST_TIMES = 100
"""Runs of either at most: all of them are launched before the first begins."""

DIVISIONS = 3
"""Divisions of the SMs that are tried, of those that SGLang makes by itself."""

Pair = tuple[int, int, int]
"""Rows of the GEMMs; requests that decode, and tokens of each."""


def measure(
    machine: Machine, layer: Layer, pairs: Sequence[Pair], *, least: float = LEAST_SECONDS
) -> Iterator[Point]:
    """Time each pair on the whole GPU."""
    for pair in pairs:
        yield _at_once(machine, layer, pair, TOGETHER, machine.streams(), least=least)


def measure_divided(
    machine: Machine, layer: Layer, pairs: Sequence[Pair], *, least: float = LEAST_SECONDS
) -> Iterator[Point]:
    """Time each pair on a GPU that is divided, and each of it alone on its part.

    Raises:
        NotDivided: it cannot be.
    """
    for compute_sms, memory_sms in divisions(machine):
        streams = machine.streams(compute_sms, memory_sms)
        for pair in pairs:
            point = _at_once(machine, layer, pair, DIVIDED, streams, compute_sms, memory_sms, least=least)
            yield point
            rows, requests, length = pair
            yield Point(
                GEMM_PART, point.compute_alone / point.compute_times, rows=rows, compute_sms=compute_sms
            )
            yield Point(
                DECODE_PART,
                point.memory_alone / point.memory_times,
                requests=requests,
                kv_tokens=requests * length,
                memory_sms=memory_sms,
            )


def divisions(machine: Machine) -> list[tuple[int, int]]:
    """SMs for GEMMs and for decode attention.

    Raises:
        NotDivided: SGLang does not divide this GPU.
    """
    gpu = Hardware(
        machine.name,
        1.0,
        1.0,
        1.0,
        multiprocessors=machine.multiprocessors,
        compute_capability=machine.compute_capability,
    )
    try:
        return [(division.prefill, division.decode) for division in own_divisions(gpu, DIVISIONS)]
    except ValueError as error:
        raise NotDivided(str(error)) from error


def _at_once(
    machine: Machine,
    layer: Layer,
    pair: Pair,
    kind: str,
    streams: Streams,
    compute_sms: int = 0,
    memory_sms: int = 0,
    *,
    least: float,
) -> Point:
    rows, requests, length = pair
    once = (
        machine.clock.seconds(products(machine, layer, rows), streams[0]),
        machine.clock.seconds(attention(machine, layer, requests, length), streams[1]),
    )
    times = as_long(*once, least=least)
    compute = products(machine, layer, rows, times=times[0])
    memory = attention(machine, layer, requests, length, times=times[1])
    return Point(
        kind,
        machine.clock.at_once(compute, memory, streams),
        rows=rows,
        requests=requests,
        kv_tokens=requests * length,
        compute_sms=compute_sms,
        memory_sms=memory_sms,
        compute_times=times[0],
        memory_times=times[1],
        compute_alone=machine.clock.seconds(compute, streams[0]),
        memory_alone=machine.clock.seconds(memory, streams[1]),
    )


def as_long(compute: float, memory: float, *, least: float) -> tuple[int, int]:
    """How often each runs so that both last about as long, and so many seconds at least; not too often.

    >>> as_long(1e-3, 3e-3, least=4e-3)
    (6, 2)
    """
    longer = max(compute, memory)
    span = max(math.ceil(least / longer), 1) * longer
    compute_times, memory_times = (min(max(round(span / once), 1), MOST_TIMES) for once in (compute, memory))
    return compute_times, memory_times

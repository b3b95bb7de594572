"""Decode attention by the KV bytes that it reads, with the Triton kernel of `paged_decode`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from benchmark.gpu.layer import Layer
from benchmark.gpu.machine import Machine
from benchmark.gpu.paged_decode import BLOCK, PAGE, paged_decode, plain_decode
from benchmark.gpu.points import DECODE, Point
from benchmark.gpu.timing import Work

from sglang.batch.usage import BadUsage

WAVES = 4
"""Programs for each SM that the kernel is divided into at least."""

TOLERANCE = 4e-2
"""Of an output in bfloat16, whose values are averages of standard normal ones; a wrong kernel is off by 1."""


class WrongKernel(Exception):
    """A kernel does not compute what it should, so its time means nothing."""


def measure(machine: Machine, layer: Layer, pools: Sequence[tuple[int, int]]) -> Iterator[Point]:
    """Time one layer's attention for each pool of (requests, tokens of each) that fits half of the memory."""
    for requests, length in pools:
        if requests * length * layer.kv_bytes < 0.5 * machine.memory:
            seconds = machine.clock.seconds(attention(machine, layer, requests, length))
            yield Point(DECODE, seconds, requests=requests, kv_tokens=requests * length)


def attention(machine: Machine, layer: Layer, requests: int, length: int, *, times: int = 1) -> Work:
    """Attention of `requests` queries to `length` tokens each, `times` over; plain PyTorch on a CPU."""
    inputs = paged_inputs(machine, layer, [length] * requests)
    parts = min(-(-WAVES * machine.multiprocessors // (requests * layer.kv_heads)), -(-length // BLOCK))

    def work() -> None:
        for _ in range(times):
            if machine.is_gpu:
                paged_decode(**inputs, parts=max(parts, 1))
            else:
                plain_decode(**inputs)

    return work


def paged_inputs(machine: Machine, layer: Layer, lengths: Sequence[int], *, seed: int = 0) -> dict[str, Any]:
    """Random queries and a KV cache whose pages lie in random order."""
    generator = torch.Generator().manual_seed(seed)
    pages = [-(-length // PAGE) for length in lengths]
    order = torch.randperm(sum(pages), generator=generator, dtype=torch.int32)
    table = torch.zeros(len(lengths), max(pages), dtype=torch.int32)
    for row, own in zip(table, order.split(pages), strict=True):
        row[: len(own)] = own
    options: Any = {"device": machine.device, "dtype": machine.dtype}
    torch.manual_seed(seed)
    pool = (sum(pages), PAGE, layer.kv_heads, layer.head_dim)
    return {
        "queries": torch.randn(len(lengths), layer.heads, layer.head_dim, **options),
        "keys": torch.randn(pool, **options),
        "values": torch.randn(pool, **options),
        "table": table.to(machine.device),
        "lengths": torch.tensor(lengths, dtype=torch.int32, device=machine.device),
    }


def check(machine: Machine, layer: Layer) -> float:
    """Compare the kernel with plain PyTorch on uneven lengths; the largest difference.

    Raises:
        BadUsage: the kernel does not know heads of this size.
        WrongKernel: it is too large.
    """
    if layer.head_dim < 16 or layer.head_dim & (layer.head_dim - 1):
        raise BadUsage(
            f"--model-path: heads of {layer.head_dim} features; the decode kernel knows powers of two from 16"
        )
    inputs = paged_inputs(machine, layer, [1, 17, 64, 300, 1000])
    difference = float((paged_decode(**inputs, parts=3) - plain_decode(**inputs)).abs().max())
    if not difference <= TOLERANCE:
        raise WrongKernel(f"the paged decode kernel differs from plain PyTorch by {difference:.3g}")
    return difference

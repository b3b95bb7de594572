"""GEMM times of a decoder layer by rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from benchmark.gpu.layer import Layer
from benchmark.gpu.machine import Machine
from benchmark.gpu.points import GEMM, Point
from benchmark.gpu.timing import Work


def measure(machine: Machine, layer: Layer, rows: Sequence[int]) -> Iterator[Point]:
    """Time all products of the layer, one after the other, for each number of rows."""
    for count in rows:
        yield Point(GEMM, machine.clock.seconds(products(machine, layer, count)), rows=count)


def products(machine: Machine, layer: Layer, rows: int, *, times: int = 1) -> Work:
    """The products of `rows` rows with every matrix of the layer, `times` over.

    Weights are laid out as SGLang has them, (features out, features in), and drawn at random: products of
    zeros take less power and are faster.
    """
    options: Any = {"device": machine.device, "dtype": machine.dtype}
    weights = [torch.randn(b, a, **options) for a, b in layer.matrices]
    inputs = [torch.randn(rows, a, **options) for a, _ in layer.matrices]

    def work() -> None:
        for _ in range(times):
            for x, weight in zip(inputs, weights, strict=True):
                torch.nn.functional.linear(x, weight)

    return work

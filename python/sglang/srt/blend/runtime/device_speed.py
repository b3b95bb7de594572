"""How fast a device multiplies matrices and reads memory, by the clock on the wall.

Every figure is the best of several rounds: other work on the machine can only make one slower. On CUDA and
ROCm devices this has not been run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from sglang.srt.blend.core.cost.correction import Correction
from sglang.srt.blend.core.cost.step_time import StepTimeModel

Matrix = tuple[int, int]
"""Features in, features out of one weight matrix."""

Product = Callable[[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]
"""Prepares a weight, (features out, features in), for products with it."""

WEIGHTS = 512 << 20
"""Bytes of weights that are timed at most; where a model's are more, fewer of its layers are timed."""

_LONG = 1.0
"""Seconds from which a measurement is good to a few percent without being repeated."""

_AT_START = {"cpu": (256, 16 << 20), "": (2048, 256 << 20)}
"""Rows of the product that tells a server the FLOP/s when it starts, and bytes of its weights, by device."""

_DOUBT = 1.25
"""Factor from which a moment's measurement is believed: steps will tell more."""


def correction_at_start(
    times: StepTimeModel, device: str, dtype: torch.dtype, product: Product | None = None
) -> Correction:
    """Compare what a profile says of GEMMs and of reading weights with what they take here.

    Args:
        times: of the model, on the profile.
        dtype: of the model's weights.
        product: how a weight is multiplied; None is PyTorch's linear layer.
    """
    shape, (rows, size) = times.shape, _AT_START.get(device.split(":")[0], _AT_START[""])
    matrix = shape.hidden, max(size // dtype.itemsize // shape.hidden, 1)
    one, many = gemm_rates([matrix], 1, dtype, rounds=3, tokens=(1, rows), device=device, product=product)
    # A CPU streams faster than it can use what it reads.
    read = min(read_bandwidth(4 * size, rounds=3, device=device), one / 2.0 * dtype.itemsize)
    told_flops = 2.0 * rows * (shape.gemm_params - shape.head_params) / float(times.gemm(rows, 0))
    factors = np.array([told_flops / many, shape.weight_bytes / times.weight_read / read, 1.0])
    believed = np.abs(np.log(factors)) > np.log(_DOUBT)
    return Correction.from_logs(np.where(believed, np.log(factors), 0.0))


def gemm_rates(
    matrices: Sequence[Matrix],
    layers: int,
    dtype: torch.dtype,
    *,
    rounds: int,
    tokens: Sequence[int],
    device: str = "cpu",
    product: Product | None = None,
) -> Iterator[float]:
    """Time the products of all layers.

    Layers have weights of their own, as in a forward pass: with few tokens, reading them is what counts.

    Args:
        matrices: of one layer.
        tokens: rows of the products.
        product: how a weight is multiplied; None is PyTorch's linear layer.

    Yields:
        FLOP/s, one value for each number of tokens.
    """
    layer_bytes = sum(a * b for a, b in matrices) * dtype.itemsize
    copies = max(1, min(layers, WEIGHTS // layer_bytes))
    product = product or row_major_product
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    weights = [[product(torch.randn(b, a, **options)) for a, b in matrices] for _ in range(copies)]
    flop_per_token = 2.0 * copies * sum(a * b for a, b in matrices)
    for count in tokens:
        inputs = [torch.randn(count, a, **options) for a, _ in matrices]

        def forward(inputs: list[torch.Tensor] = inputs) -> None:
            for layer in weights:
                for x, multiply in zip(inputs, layer, strict=True):
                    multiply(x)

        yield flop_per_token * count / best_seconds(forward, rounds, device)


def row_major_product(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """PyTorch's linear layer."""
    return lambda x: torch.nn.functional.linear(x, weight)


def read_bandwidth(size: int, *, rounds: int, device: str = "cpu") -> float:
    """Time the reading of `size` bytes with all that the device has; returns bytes/s."""
    data = torch.ones(max(1, size // 4), dtype=torch.float32, device=device)
    return data.nbytes / best_seconds(data.sum, rounds, device)


def best_seconds(work: Callable[[], object], rounds: int, device: str = "cpu") -> float:
    """Time `work`: seconds of the fastest of `rounds`, after one that warms up.

    What takes long is not repeated: bfloat16 on a CPU without instructions for it would take many minutes.
    """
    wait = getattr(torch.get_device_module(device), "synchronize", None)

    def once() -> float:
        start = time.perf_counter()
        work()
        if wait is not None:
            wait()
        return time.perf_counter() - start

    first = once()
    return first if first > _LONG else min(once() for _ in range(rounds))

"""Timing of a CPU: the matrix products of a model's layers, and reading memory that no cache holds.

Every figure is the best of several rounds: other work on the machine can only make one slower.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sglang.batch.calibrate.calibration import Calibration
from sglang.batch.usage import BadUsage

if TYPE_CHECKING:  # at run time inside functions: the command line's --help does not wait for it
    import torch

DTYPES = ("float32", "bfloat16")
"""Dtypes whose products are timed."""

TOKENS = (1, 8, 32, 128, 512, 2048)
"""Rows of the products, which are tokens of one step."""

WEIGHTS = 512 << 20
"""Bytes of weights that are timed at most; where the model's are more, fewer of its layers are timed."""

READ = 1 << 30
"""Bytes that the bandwidth is timed with, less on machines with little memory."""

Matrix = tuple[int, int]
"""Features in, features out of one weight matrix."""

_LONG = 1.0
"""Seconds from which a measurement is good to a few percent without being repeated."""


def layer_matrices(config: Any) -> tuple[list[Matrix], int]:
    """List the matrices of one decoder layer as SGLang multiplies them: q, k, v and gate, up are one each.

    Args:
        config: a Hugging Face config. Experts count as one dense MLP of their width.

    Returns:
        The matrices, and how many layers there are.

    Raises:
        BadUsage: the config is not a decoder's.
    """
    text = config.get_text_config()
    try:
        hidden, heads, layers = text.hidden_size, text.num_attention_heads, text.num_hidden_layers
    except AttributeError as error:
        raise BadUsage(f"--model-path: its config.json is not a decoder's ({error})") from error
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head = getattr(text, "head_dim", None) or hidden // heads
    mlp = getattr(text, "intermediate_size", None) or 4 * hidden
    projections = [(hidden, (heads + 2 * kv_heads) * head), (heads * head, hidden)]
    return [*projections, (hidden, 2 * mlp), (mlp, hidden)], layers


def measure(
    matrices: Sequence[Matrix],
    layers: int,
    *,
    rounds: int,
    threads: int | None = None,
    tokens: Sequence[int] = TOKENS,
) -> Calibration:
    """Time everything, with a progress bar where somebody sees it.

    Args:
        matrices: of one layer.
        rounds: times that each figure is taken, of which the best counts.
        threads: threads of PyTorch; None leaves them as they are.
        tokens: rows of the products.
    """
    import torch
    from tqdm import tqdm

    if threads:
        torch.set_num_threads(threads)
    gemm: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    memory = _memory()
    with torch.inference_mode(), tqdm(total=len(DTYPES) * len(tokens) + 1, disable=None) as bar:
        for dtype, rates in gemm.items():
            bar.set_description(f"{dtype} GEMM")
            for rate in gemm_rates(matrices, layers, getattr(torch, dtype), rounds=rounds, tokens=tokens):
                rates.append(rate)
                bar.update()
        bar.set_description("memory reads")
        bandwidth = read_bandwidth(min(READ, memory // 8), rounds=rounds)
        bar.update()
    count = torch.get_num_threads()
    machine = f"{_cpu_name()}, {count} thread{'s' if count > 1 else ''}"
    return Calibration(tuple(tokens), gemm, bandwidth, memory, machine)


def gemm_rates(
    matrices: Sequence[Matrix],
    layers: int,
    dtype: torch.dtype,
    *,
    rounds: int,
    tokens: Sequence[int],
) -> Iterator[float]:
    """Time the products of all layers.

    Layers have weights of their own, as in a forward pass: with few tokens, reading them is what counts.

    Yields:
        FLOP/s, one value for each number of tokens.
    """
    import torch

    from sglang.srt.platforms import current_platform

    layer_bytes = sum(a * b for a, b in matrices) * dtype.itemsize
    copies = max(1, min(layers, WEIGHTS // layer_bytes))
    product = getattr(current_platform, "product", _row_major_product)
    weights = [[product(torch.randn(b, a, dtype=dtype)) for a, b in matrices] for _ in range(copies)]
    flop_per_token = 2.0 * copies * sum(a * b for a, b in matrices)
    for count in tokens:
        inputs = [torch.randn(count, a, dtype=dtype) for a, _ in matrices]

        def forward(inputs: list[torch.Tensor] = inputs) -> None:
            for layer in weights:
                for x, multiply in zip(inputs, layer, strict=True):
                    multiply(x)

        yield flop_per_token * count / best_seconds(forward, rounds)


def _row_major_product(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    return lambda x: torch.nn.functional.linear(x, weight)


def read_bandwidth(size: int, *, rounds: int) -> float:
    """Time the reading of `size` bytes with all threads; returns bytes/s."""
    import torch

    data = torch.ones(max(1, size // 4), dtype=torch.float32)
    return data.nbytes / best_seconds(data.sum, rounds)


def best_seconds(work: Callable[[], object], rounds: int) -> float:
    """Time `work`: seconds of the fastest of `rounds`, after one that warms up.

    What takes long is not repeated: bfloat16 on a CPU without instructions for it would take many minutes.
    """

    def once() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    first = once()
    return first if first > _LONG else min(once() for _ in range(rounds))


def _memory() -> int:
    """Bytes of memory that this process may use: a container's limit counts."""
    from sglang.srt.platforms import current_platform

    return int(current_platform.get_device_total_memory())


def _cpu_name() -> str:
    import torch

    name = torch.cpu.get_capabilities().get("cpu_name")
    return str(name) if name else f"{os.uname().machine} CPU"

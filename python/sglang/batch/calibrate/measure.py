"""Timing of a CPU: the matrix products of a model's layers, and reading memory that no cache holds.

Every figure is the best of several rounds: other work on the machine can only make one slower.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sglang.batch.calibrate.calibration import Calibration
from sglang.batch.usage import BadUsage

if TYPE_CHECKING:  # at run time inside functions: the command line's --help does not wait for PyTorch
    from sglang.srt.blend.runtime.device_speed import Matrix

DTYPES = ("float32", "bfloat16")
"""Dtypes whose products are timed."""

TOKENS = (1, 8, 32, 128, 512, 2048)
"""Rows of the products, which are tokens of one step."""

READ = 1 << 30
"""Bytes that the bandwidth is timed with, less on machines with little memory."""


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

    from sglang.srt.blend.runtime.device_speed import gemm_rates, read_bandwidth
    from sglang.srt.platforms import current_platform

    product = getattr(current_platform, "product", None)
    if threads:
        torch.set_num_threads(threads)
    gemm: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    memory = _memory()
    with torch.inference_mode(), tqdm(total=len(DTYPES) * len(tokens) + 1, disable=None) as bar:
        for dtype, rates in gemm.items():
            bar.set_description(f"{dtype} GEMM")
            kind = getattr(torch, dtype)
            for rate in gemm_rates(matrices, layers, kind, rounds=rounds, tokens=tokens, product=product):
                rates.append(rate)
                bar.update()
        bar.set_description("memory reads")
        bandwidth = read_bandwidth(min(READ, memory // 8), rounds=rounds)
        bar.update()
    count = torch.get_num_threads()
    machine = f"{_cpu_name()}, {count} thread{'s' if count > 1 else ''}"
    return Calibration(tuple(tokens), gemm, bandwidth, memory, machine)


def _memory() -> int:
    """Bytes of memory that this process may use: a container's limit counts."""
    from sglang.srt.platforms import current_platform

    return int(current_platform.get_device_total_memory())


def _cpu_name() -> str:
    import torch

    name = torch.cpu.get_capabilities().get("cpu_name")
    return str(name) if name else f"{os.uname().machine} CPU"

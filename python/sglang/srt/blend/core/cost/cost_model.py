"""Comp, Mem and density of a request (paper 4.1): what the planner orders by.

Lengths are tokens and may be numbers or arrays, which broadcast: results have their common shape. Times are
seconds of one tensor-parallel rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blend.core.cost.hardware import Hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CostModel:
    """What requests cost over their lifetime on one model and one kind of hardware, at peak rates.

    What a single forward pass takes, with measured efficiencies and the weight floor: `step_time`.

    A long prompt with a short answer keeps the compute units busy, a short prompt with a long answer the
    memory:

    >>> from sglang.srt.blend.core.cost.hardware import load_hardware
    >>> llama_3_8b = ModelShape(
    ...     gemm_params=7.5e9, weight_bytes=15e9, layers=32, attention_width=4096, kv_bytes=4096
    ... )
    >>> cost = CostModel(llama_3_8b, load_hardware("a100-80gb"))
    >>> cost.density([2000, 100], [20, 10_000]).round(1).tolist()
    [40.2, 0.1]

    Attributes:
        shape: sizes of one rank's share of the model.
        hardware: peak rates of one rank's accelerator.
    """

    shape: ModelShape
    hardware: Hardware

    def comp(self, prompt: ArrayLike, output: ArrayLike) -> Seconds:
        """Compute seconds of whole requests that share nothing: (2 (p + d) P + 4 p^2 H L) / F (paper 4.1).

        Args:
            prompt, output: tokens p and d.
        """
        return self.prefix_comp(prompt) + self._per_token * np.asarray(output, np.float64)

    def prefix_comp(self, tokens: ArrayLike) -> Seconds:
        """Compute seconds to prefill prefixes of `tokens` from nothing: what sharing them saves."""
        p = np.asarray(tokens, np.float64)
        quadratic = 4.0 * self.shape.attention_width * self.shape.layers / self.hardware.flops
        return self._per_token * p + quadratic * p * p

    def mem(self, prompt: ArrayLike, output: ArrayLike) -> Seconds:
        """Seconds in which requests read their KV cache while they decode (paper 4.1).

        A request reads p + i KV tokens for its i-th output token, i = 1..d; layers with a sliding window
        read at most the window.

        Args:
            prompt, output: tokens p and d.
        """
        shape = self.shape
        p, d = np.asarray(prompt, np.float64), np.asarray(output, np.float64)
        read = (shape.layers - shape.window_layers) * _tokens_read(p, d)
        if shape.window_layers:
            growing = np.clip(shape.window - p, 0.0, d)
            windowed = _tokens_read(p, growing) + (d - growing) * shape.window
            read = read + shape.window_layers * windowed
        return np.asarray(read * shape.kv_bytes / self.hardware.bandwidth)

    def density(self, prompt: ArrayLike, output: ArrayLike, *, sharing: float = 0.0) -> Seconds:
        """Densities rho = (1 - sharing) Comp / Mem, dimensionless; infinite where nothing is decoded.

        Args:
            prompt, output: tokens.
            sharing: share of the compute that a common prefix saves, in [0, 1].
        """
        with np.errstate(divide="ignore"):
            return np.asarray((1.0 - sharing) * self.comp(prompt, output) / self.mem(prompt, output))

    def work_density(self, rows: float, kv_reads: float) -> float:
        """Density Comp / Mem of work in passes, dimensionless; infinite when nothing is read.

        Attention in prefill and sliding windows are left out.

        Args:
            rows: tokens that go through the GEMMs, prefilled or decoded.
            kv_reads: KV tokens read, summed over steps.
        """
        mem = kv_reads * self.shape.layers * self.shape.kv_bytes / self.hardware.bandwidth
        return self._per_token * rows / mem if mem > 0 else float("inf")

    @property
    def weight_time(self) -> float:
        """Seconds in which the weights are read once: the least that a pass takes."""
        return self.shape.weight_bytes / self.hardware.bandwidth

    @property
    def _per_token(self) -> float:
        return 2.0 * self.shape.gemm_params / self.hardware.flops


def _tokens_read(prompt: NDArray[np.float64], output: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over i = 1..output of (prompt + i)."""
    return prompt * output + output * (output + 1.0) / 2.0

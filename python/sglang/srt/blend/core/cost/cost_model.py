"""Comp, Mem and density of a request (paper 4.1): what the planner orders by.

Lengths are tokens and may be numbers or arrays, which broadcast; times are seconds of one rank.
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
    """Lifetime cost of requests on one model and one kind of hardware, at peak rates as in the paper.

    What a single forward pass takes, with measured efficiencies and the weight floor: `step_time`.

    >>> from sglang.srt.blend.core.cost.hardware import load_hardware
    >>> shape = ModelShape(7.5e9, weight_bytes=15e9, layers=32, attention_width=4096, kv_bytes=4096)
    >>> cost = CostModel(shape, load_hardware("a100-80gb"))
    >>> many_shots, video = cost.density(800, 2), cost.density(100, 16_000)
    >>> bool(many_shots > 1 > video)  # one burns compute, the other memory bandwidth
    True
    """

    shape: ModelShape
    hardware: Hardware

    def comp(self, prompt: ArrayLike, output: ArrayLike) -> Seconds:
        """Compute seconds of a whole request without sharing: (2 (p+d) P + 4 p^2 H L) / F."""
        return self.prefix_comp(prompt) + self._per_token * np.asarray(output, np.float64)

    def prefix_comp(self, tokens: ArrayLike) -> Seconds:
        """Compute seconds to prefill `tokens` from nothing; what sharing such a prefix saves."""
        p = np.asarray(tokens, np.float64)
        quadratic = 4.0 * self.shape.attention_width * self.shape.layers / self.hardware.flops
        return self._per_token * p + quadratic * p * p

    def mem(self, prompt: ArrayLike, output: ArrayLike) -> Seconds:
        """Seconds of KV cache reads over a request's decode: sum over i = 1..d of (p + i) KV tokens.

        Layers with a sliding window read at most the window.
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
        """Density (1 - sharing) Comp / Mem of a request; infinite for one that decodes nothing (paper 4.1).

        Args:
            sharing: share of the compute that a cached prefix saves, in [0, 1].
        """
        with np.errstate(divide="ignore"):
            return np.asarray((1.0 - sharing) * self.comp(prompt, output) / self.mem(prompt, output))

    def work_density(self, rows: float, kv_reads: float) -> float:
        """Comp / Mem of work that is given as rows to compute and KV tokens to read.

        Attention in prefill and sliding windows are left out; infinite when nothing is read.
        """
        mem = kv_reads * self.shape.layers * self.shape.kv_bytes / self.hardware.bandwidth
        return self._per_token * rows / mem if mem > 0 else float("inf")

    @property
    def weight_time(self) -> float:
        """Seconds to read the weights once: what a pass takes however few rows it has."""
        return self.shape.weight_bytes / self.hardware.bandwidth

    @property
    def _per_token(self) -> float:
        return 2.0 * self.shape.gemm_params / self.hardware.flops


def _tokens_read(prompt: NDArray[np.float64], output: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over i = 1..output of (prompt + i)."""
    return prompt * output + output * (output + 1.0) / 2.0

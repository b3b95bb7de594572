"""How busy a simulated GPU's two resources are over a run (as in paper Figure 10)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blend.core.cost.hardware import Hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.step_time import StepWork

Floats = NDArray[np.float64]

BINS = 120
"""Stretches of equal simulated time into which a run is cut."""


@dataclass(frozen=True)
class Timeline:
    """Use of compute and memory over simulated time, one value per stretch of equal length.

    Attributes:
        stretch: seconds of one stretch.
        compute: share of the peak FLOP/s, 0 to 1.
        memory: share of the peak bandwidth, 0 to 1.
    """

    stretch: float
    compute: tuple[float, ...]
    memory: tuple[float, ...]


def timeline(seconds: ArrayLike, work: StepWork, shape: ModelShape, hardware: Hardware) -> Timeline:
    """Spread the work of steps over simulated time.

    Args:
        seconds: (steps,) simulated seconds of each step.
        work: its fields are (steps,) arrays.
        shape: one GPU's share of the model.
    """
    ends = np.concatenate([[0.0], np.cumsum(_floats(seconds))])
    edges = np.linspace(0.0, ends[-1], BINS + 1)
    stretch = float(ends[-1]) / BINS

    def share(amounts: Floats, peak: float) -> tuple[float, ...]:
        done = np.interp(edges, ends, np.concatenate([[0.0], np.cumsum(amounts)]))
        return tuple(np.round(np.diff(done) / (stretch * peak), 4).tolist())

    return Timeline(
        stretch=stretch,
        compute=share(_flop(work, shape), hardware.flops),
        memory=share(_bytes(work, shape), hardware.bandwidth),
    )


def _flop(work: StepWork, shape: ModelShape) -> Floats:
    """FLOP of each step, (steps,): the products of its rows, and attention over the KV of each."""
    decode, kv_tokens = _floats(work.decode_rows), _floats(work.kv_tokens)
    rows, logits = decode + _floats(work.prefill_tokens), decode + _floats(work.finished_prefills)
    gemm = 2.0 * ((shape.gemm_params - shape.head_params) * rows + shape.head_params * logits)
    pairs = _floats(work.prefill_pairs) + kv_tokens
    return np.asarray(gemm + 4.0 * shape.attention_width * shape.layers * pairs)


def _bytes(work: StepWork, shape: ModelShape) -> Floats:
    """Bytes read in each step, (steps,): the weights once, and the KV of its decode rows; no activations."""
    return np.asarray(shape.weight_bytes + _floats(work.kv_tokens) * shape.kv_bytes_per_token)


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, np.float64)

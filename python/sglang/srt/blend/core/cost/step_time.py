"""Seconds of one forward pass on a GPU, by its parts: the backend of planner, simulator and report.

`StepTimeModel.parts` knows what each kind of work costs alone; `engines` knows how an engine puts them
together. GEMM times come from measured tables where the hardware has them (`gemm_profile`), otherwise
from the datasheet. All work counts are of one rank's batch, in tokens; times are seconds; arrays
broadcast, so a log of a million steps is one call.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blend.core.cost.correction import AS_TOLD, Correction
from sglang.srt.blend.core.cost.gemm_profile import (
    TILE_ROWS,
    GemmProfile,
    find_gemm_profile,
    kernel_figures,
    roofline,
    whole_tiles,
)
from sglang.srt.blend.core.cost.hardware import Hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a forward pass has to do; with arrays, what each of many passes has to do.

    Attributes:
        prefill_tokens: prompt tokens computed.
        decode_rows: requests that decode one token.
        kv_tokens: KV tokens that the decode rows read, summed over rows.
        prefill_pairs: query-key pairs of prefill attention, see `causal_pairs`.
        finished_prefills: prompts that end in this pass and so need logits.
        window_kv_tokens: as kv_tokens, for layers with a sliding window; None means nothing is cut off.
    """

    prefill_tokens: ArrayLike = 0
    decode_rows: ArrayLike = 0
    kv_tokens: ArrayLike = 0
    prefill_pairs: ArrayLike = 0
    finished_prefills: ArrayLike = 0
    window_kv_tokens: ArrayLike | None = None

    def only_prefill(self) -> StepWork:
        """The pass without its decode rows."""
        return StepWork(
            prefill_tokens=self.prefill_tokens,
            prefill_pairs=self.prefill_pairs,
            finished_prefills=self.finished_prefills,
        )

    def only_decode(self) -> StepWork:
        """The pass without its prefill."""
        return StepWork(
            decode_rows=self.decode_rows, kv_tokens=self.kv_tokens, window_kv_tokens=self.window_kv_tokens
        )


def causal_pairs(new_tokens: ArrayLike, cached_tokens: ArrayLike = 0) -> Floats:
    """Query-key pairs of `new_tokens` prefilled behind `cached_tokens`: each sees itself and all before it.

    >>> causal_pairs([3, 3], [0, 10]).tolist()
    [6.0, 36.0]
    """
    new, cached = np.asarray(new_tokens, np.float64), np.asarray(cached_tokens, np.float64)
    return np.asarray(new * cached + new * (new + 1.0) / 2.0)


@dataclass(frozen=True, slots=True)
class StepParts:
    """Seconds that each kind of a pass's work takes when it runs alone.

    Attributes:
        gemm: projections, MLP and output head, weight floor included.
        other: norms, activations and other small operators.
        prefill_attention, decode_attention: attention kernels.
        all_reduce: communication between tensor-parallel ranks.
        weight_read: time to read the weights once; part of `gemm`, not on top of it. It bounds what an
            overlapping engine can hide, because the memory bus is shared.
        overhead: per pass, outside the layers.
    """

    gemm: Floats
    other: Floats
    prefill_attention: Floats
    decode_attention: Floats
    all_reduce: Floats
    weight_read: Floats
    overhead: Floats

    @property
    def compute(self) -> Floats:
        """Seconds of everything but attention over the KV cache: GEMMs, prefill attention, the small rest."""
        return self.gemm + self.other + self.prefill_attention + self.all_reduce

    @property
    def memory(self) -> Floats:
        """Seconds in which the memory bus is needed, for weights and KV cache."""
        return self.weight_read + self.decode_attention


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What no table says; defaults and reasons are in gpu_kernels.toml under `assumed`.

    Attributes:
        prefill_attention_efficiency: share of the peak FLOP/s that prefill attention reaches, in (0, 1].
        step_overhead: seconds per pass outside the layers.
        interference: share of the shorter of compute and KV reads that overlapping does not hide, in [0, 1].
        all_reduce_efficiency: share of a link's rate that an all-reduce reaches, in (0, 1].
        all_reduce_latency: seconds of an all-reduce however little it sends.
    """

    prefill_attention_efficiency: float
    step_overhead: float
    interference: float
    all_reduce_efficiency: float
    all_reduce_latency: float

    @classmethod
    def default(cls, **changed: float) -> Assumptions:
        """The stated assumptions, those in `changed` replaced.

        Raises:
            ValueError: a name in `changed` is unknown.
        """
        known = {field.name for field in fields(cls)}
        for name in changed.keys() - known:
            raise ValueError(f"assumption {name!r}: unknown; choose one of {', '.join(sorted(known))}")
        return cls(**(kernel_figures()["assumed"] | changed))


class StepTimeModel:
    """Seconds that forward passes of one model take on one kind of hardware.

    Args:
        shape: one rank's share, as `ModelShape.from_config(..., tensor_parallel=n)` gives it.
        hardware: one rank's accelerator.
        assumptions: to see what depends on them; None takes those that the hardware profile replaces from
            there and the others as stated.
        correction: of the profile, as steps have shown it.

    Raises:
        ValueError: more than one rank, and the rate of the links between them is not known.

    Attributes:
        profile: the measured GEMM series in use, or None. Tables are BF16 and dense: quantised weights and
            mixtures of experts, which read other bytes per parameter, use the datasheet.
        tile: rows that GEMMs are known to work on at once; 1 where nothing is known.
    """

    def __init__(
        self,
        shape: ModelShape,
        hardware: Hardware,
        *,
        assumptions: Assumptions | None = None,
        correction: Correction = AS_TOLD,
    ) -> None:
        self.shape = shape
        self.hardware = hardware = correction.of(hardware)
        assumed = assumptions or Assumptions.default(**hardware.assumed)
        self.assumptions = replace(assumed, step_overhead=correction.overhead * assumed.step_overhead)
        self._layer_params = (shape.gemm_params - shape.head_params) / shape.layers
        self.profile: GemmProfile | None = None
        if abs(shape.weight_bytes / shape.gemm_params - 2.0) < 0.02 and not correction.tiled:
            self.profile = find_gemm_profile(
                hardware.name, layer_params=self._layer_params, tensor_parallel=shape.tensor_parallel
            )
        if self.profile is not None and correction != AS_TOLD:
            self.profile = self.profile.slowed(correction.compute, correction.memory)
        self.tile = TILE_ROWS if self.profile is not None or correction.tiled else 1
        figures: dict[str, Any] = kernel_figures()
        measured = self.profile is not None
        decode = figures["decode_attention"]
        self._decode_fixed = decode["fixed_ms"] * 1e-3 if measured else 0.0
        self._decode_rate = hardware.bandwidth * (
            decode["bandwidth_efficiency"] if measured else hardware.bandwidth_efficiency
        )
        self._weight_rate = hardware.bandwidth * (
            figures["weights"]["bandwidth_efficiency"] if measured else hardware.bandwidth_efficiency
        )
        self._link = hardware.link or figures["links"].get(hardware.name)
        if shape.tensor_parallel > 1 and self._link is None:
            raise ValueError(
                f"hardware profile {hardware.name!r}: no link rate between its GPUs is known, so tensor "
                "parallelism cannot be modelled; add link = BYTES_PER_SECOND to the profile"
            )

    def parts(self, work: StepWork) -> StepParts:
        """Seconds of each kind of work in a pass, or in each of many; all zero for a pass without work."""
        rows = np.asarray(work.prefill_tokens, np.float64) + np.asarray(work.decode_rows, np.float64)
        logits = np.asarray(work.finished_prefills, np.float64) + np.asarray(work.decode_rows, np.float64)
        busy = (rows > 0).astype(np.float64)
        return StepParts(
            gemm=self.gemm(rows, logits),
            other=self.other(rows),
            prefill_attention=self.prefill_attention(work.prefill_pairs),
            decode_attention=self.decode_attention(work.kv_tokens, work.window_kv_tokens),
            all_reduce=self.all_reduce(rows),
            weight_read=busy * self.weight_read,
            overhead=busy * self.assumptions.step_overhead,
        )

    @property
    def weight_read(self) -> float:
        """Seconds in which all weights are read once."""
        return self.shape.weight_bytes / self._weight_rate

    def gemm(self, rows: ArrayLike, logits_rows: ArrayLike | None = None) -> Floats:
        """Seconds of the GEMMs of all layers and the output head.

        Args:
            rows: tokens that pass through the layers.
            logits_rows: those of them that need logits; all by default.
        """
        logits = rows if logits_rows is None else logits_rows
        layers = self._layer_params * self.shape.layers
        return self._gemm(rows, layers) + self._gemm(logits, self.shape.head_params)

    def decode_attention(self, kv_tokens: ArrayLike, window_kv_tokens: ArrayLike | None = None) -> Floats:
        """Seconds in which decoding rows attend to their KV cache in all layers.

        Args:
            kv_tokens: read by full attention, summed over the rows.
            window_kv_tokens: read by layers with a sliding window; as many as `kv_tokens` by default.
        """
        shape = self.shape
        full = np.asarray(kv_tokens, np.float64)
        window = full if window_kv_tokens is None else np.asarray(window_kv_tokens, np.float64)
        read = (shape.layers - shape.window_layers) * full + shape.window_layers * window
        fixed = np.where(full > 0, shape.layers * self._decode_fixed, 0.0)
        return np.asarray(fixed + read * shape.kv_bytes / self._decode_rate)

    def prefill_attention(self, pairs: ArrayLike) -> Floats:
        """Seconds of prefill attention over `pairs` of a query and a key (see `causal_pairs`), in all layers.

        Compute only: a chunk of queries reads the KV before it once, which is small beside its FLOPs.
        Sliding windows are not cut off.
        """
        flop = 4.0 * self.shape.attention_width * self.shape.layers * np.asarray(pairs, np.float64)
        return np.asarray(flop / (self.hardware.flops * self.assumptions.prefill_attention_efficiency))

    def all_reduce(self, rows: ArrayLike) -> Floats:
        """Seconds of two ring all-reduces per layer over 16-bit hidden states of `rows`; 0 on one rank."""
        ranks, n = self.shape.tensor_parallel, np.asarray(rows, np.float64)
        if ranks == 1:
            return np.zeros_like(n)
        sent = 2.0 * (ranks - 1) / ranks * n * self.shape.hidden * 2.0
        once = sent / (self._link * self.assumptions.all_reduce_efficiency)
        once = once + self.assumptions.all_reduce_latency
        return np.asarray(np.where(n > 0, 2.0 * self.shape.layers * once, 0.0))

    def _gemm(self, rows: ArrayLike, params: float) -> Floats:
        if self.profile is not None:
            return self.profile.gemm_seconds(rows, params)
        n, hardware, shape = np.asarray(rows, np.float64), self.hardware, self.shape
        share = params / shape.gemm_params
        if self.tile > 1:
            n = whole_tiles(n)
        floor = share * shape.weight_bytes / self._weight_rate
        work = 2.0 * params * n / (hardware.flops * hardware.gemm_efficiency)
        return np.asarray(np.where(n > 0, roofline(floor, work), 0.0))

    def other(self, rows: ArrayLike) -> Floats:
        """Seconds of norms, activations and other small operators over `rows`; 0 where not measured."""
        rows = np.asarray(rows, np.float64)
        if self.profile is None:
            return np.zeros_like(rows)
        # These operators stream activations, so they scale with their width.
        scale = np.sqrt(self._layer_params / self.profile.params)
        return np.asarray(self.shape.layers * scale * self.profile.other_seconds(rows))

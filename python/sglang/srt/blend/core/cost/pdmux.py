"""SGLang's PD multiplexing (`--enable-pdmux`, `srt/multiplex` of 0.5.23): a GPU's SMs, divided.

One prefill batch passes the layers on one part of the streaming multiprocessors (SMs) while decode steps run
on the other. Which part is which is chosen when a batch begins, from the rows that decode then; whoever runs
alone has all SMs. `PdmuxConfig` says which divisions there are, `PdmuxTimes` what work takes on a part.

What follows a part s of the SMs, and where that comes from:

* Compute rate: s. Tensor cores are the SMs' own. Assumed: no part has leftover waves of thread blocks that
  the whole has not.
* Bandwidth: it rises with s to 0.9 of what the whole GPU reaches at a knee, and from there by the last 0.1,
  both in a straight line. At the knee every SM reads at `sm_bandwidth`. Source: decode's matrix products on
  a growing part of an H100 PCIe, github.com/zejia-lin/BulletServe/issues/1: bandwidth is not saturated
  below about 40 SMs, and what lies beyond adds 10%. 0.9 x 2.0 TB/s / 40 SMs is 45 GB/s. Assumed: the same
  rate per SM on other GPUs, whose knees are then at 38% (A100), 51% (H100 SXM) and 73% (H200) of the SMs.
* GEMMs read weights at that bandwidth and compute at that rate; `StepTimeModel`'s norm joins both.
* Attention over KV, norms and activations: bandwidth. Attention of prefill: compute rate. All-reduce: the
  whole GPU's time.

Assumed throughout, in `gpu_kernels.toml`: `interference`, `step_overhead`, and under `pdmux` the time for
which the CPU holds up a turn of the loop, and its time to launch a layer of prefill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.gemm_profile import compute_within, kernel_figures, roofline
from sglang.srt.blend.core.cost.hardware import Hardware
from sglang.srt.blend.core.cost.step_time import StepParts, StepTimeModel, StepWork

Floats = NDArray[np.float64]

KNEE_BANDWIDTH = 0.9
"""Share of the bandwidth that is reached at the knee."""

LEAST_DECODE_SMS = 16
"""SMs that upstream leaves to decode at least where it makes the divisions itself."""

GROUPS, SPLIT_TOKENS, ROWS_DIVISOR = 8, 65536, 36
"""Upstream's defaults: stream groups (two of them undivided), tokens times layers of one launch of prefill,
decode rows at which decode has its largest part."""


@dataclass(frozen=True, slots=True)
class Division:
    """The SMs of a GPU in two parts.

    Attributes:
        prefill, decode: SMs of each.
        from_rows: decode rows from which on it is used.
    """

    prefill: int
    decode: int
    from_rows: int


def sm_step(hardware: Hardware) -> tuple[int, int]:
    """SMs of a part at least, and their multiple, as CUDA's green contexts want them.

    Raises:
        ValueError: SGLang 0.5.23 cannot divide this GPU.
    """
    steps = {6: (1, 1), 7: (2, 2), 8: (4, 2), 9: (8, 8)}
    major = int(hardware.compute_capability)
    if not hardware.multiprocessors or major not in steps:
        raise ValueError(
            f"hardware profile {hardware.name!r}: PD multiplexing divides NVIDIA GPUs of compute capability "
            "6 to 9; a profile of one's own needs multiprocessors and compute_capability"
        )
    return steps[major]


def own_divisions(hardware: Hardware, count: int, rows_divisor: int = ROWS_DIVISOR) -> tuple[Division, ...]:
    """The divisions that upstream makes where its config lists none, most SMs for prefill first.

    Args:
        count: how many at most.
        rows_divisor: decode rows at which the last one is reached.

    Raises:
        ValueError: as of `sm_step`.

    >>> from sglang.srt.blend.core.cost.hardware import load_hardware
    >>> [(d.prefill, d.decode, d.from_rows) for d in own_divisions(load_hardware("h100"), 6)]
    [(112, 20, 1), (104, 28, 12), (96, 36, 18), (88, 44, 24), (80, 52, 30), (72, 60, 36)]
    """
    least, multiple = sm_step(hardware)
    total = hardware.multiprocessors
    prefill = np.arange(least, total - least + 1, multiple)
    prefill = prefill[(2 * prefill >= total) & (total - prefill >= LEAST_DECODE_SMS)]
    chosen = prefill[:: max(len(prefill) // count, 1)][:count][::-1].tolist()
    if not chosen:
        raise ValueError(f"hardware profile {hardware.name!r}: {total} SMs are too few to divide")
    rows = [1, *(-(-i * rows_divisor // count) for i in range(2, len(chosen) + 1))]
    return tuple(Division(p, total - p, r) for p, r in zip(chosen, rows, strict=True))


@dataclass(frozen=True, slots=True)
class PdmuxConfig:
    """What `--pdmux-config-path` says.

    Attributes:
        divisions: in the config's order; the last one whose rows are reached is used.
        split_tokens: upstream's `split_forward_token_budget`: a turn of the loop launches so many tokens
            times layers, one layer at least.
    """

    divisions: tuple[Division, ...]
    split_tokens: int = SPLIT_TOKENS

    @classmethod
    def of(cls, hardware: Hardware, raw: Mapping[str, Any] | None = None) -> PdmuxConfig:
        """Read the fields of upstream's YAML file; upstream's defaults without one.

        Raises:
            ValueError: SGLang would refuse the config or fail over it later, or cannot divide the GPU.
        """
        raw = raw or {"sm_group_num": GROUPS}
        groups = raw.get("sm_group_num", 0)
        if groups < 3:
            raise ValueError("pdmux config: sm_group_num must be given, and at least 3")
        split = int(raw.get("split_forward_token_budget", SPLIT_TOKENS))
        manual: Sequence[Sequence[int]] = raw.get("manual_divisions") or ()
        if not manual:
            divisor = raw.get("decode_bs_divisor", ROWS_DIVISOR)
            return cls(own_divisions(hardware, groups - 2, divisor), split)
        if len(manual) != groups - 2:
            raise ValueError(
                f"pdmux config: sm_group_num {groups} wants {groups - 2} manual_divisions, got {len(manual)}"
            )
        divisions = tuple(Division(*division) for division in manual)
        if min(division.from_rows for division in divisions) > 1:
            raise ValueError(
                "pdmux config: SGLang fails where a single request decodes, unless one of manual_divisions "
                "has a threshold (its third number) of 1 or less"
            )
        least, multiple = sm_step(hardware)
        for division in divisions:
            parts = (division.prefill, division.decode)
            fits = sum(parts) <= hardware.multiprocessors
            if not fits or any(part < least or part % multiple for part in parts):
                raise ValueError(
                    f"pdmux config: {list(parts)} does not divide the {hardware.multiprocessors} SMs of "
                    f"{hardware.name}: parts are multiples of {multiple}, {least} at least"
                )
        return cls(divisions, split)

    def division(self, decode_rows: int) -> Division:
        """The division beside a prefill batch that begins while so many rows decode."""
        return [d for d in self.divisions if decode_rows >= d.from_rows][-1]

    def layers(self, tokens: int, layers: int) -> int:
        """Layers, of as many as a model has, that a turn launches of a prefill batch of so many tokens."""
        return min(max(self.split_tokens // tokens, 1), layers) if tokens > 0 else layers

    def raw(self) -> dict[str, Any]:
        """The fields of upstream's YAML file; the inverse of `of`."""
        return {
            "sm_group_num": len(self.divisions) + 2,
            "manual_divisions": [[d.prefill, d.decode, d.from_rows] for d in self.divisions],
            "split_forward_token_budget": self.split_tokens,
        }


@dataclass(frozen=True, slots=True)
class Load:
    """Work that is launched on one part of a GPU.

    Attributes:
        seconds: that it takes with nobody beside it.
        bus: share of the memory bus that it uses meanwhile, 0 to 1.
    """

    seconds: Floats
    bus: Floats


class PdmuxTimes:
    """Seconds of work on a part of the SMs.

    Args:
        times: of the whole GPU.

    Raises:
        ValueError: as of `sm_step`.

    Attributes:
        turn: seconds for which the CPU holds up each turn of the loop: results and the next batches are
            not prepared while the GPU runs, as elsewhere.
        launch: seconds in which the CPU launches a layer of prefill.
    """

    def __init__(self, times: StepTimeModel) -> None:
        sm_step(times.hardware)
        self.times = times
        assumed = kernel_figures()["pdmux"]
        self.turn = times.assumptions.step_overhead + assumed["scheduling"]
        self.launch: float = assumed["layer_launch"]
        total = times.hardware.multiprocessors
        sm_bandwidth = times.hardware.sm_bandwidth or assumed["sm_bandwidth"]
        knee = KNEE_BANDWIDTH * times.hardware.bandwidth / sm_bandwidth / total
        self._knee = min(knee, KNEE_BANDWIDTH)
        self.total = total

    def bandwidth(self, sms: float) -> float:
        """Share of the whole GPU's bandwidth that a part of so many SMs reaches, in (0, 1]."""
        return float(np.interp(sms / self.total, [0.0, self._knee, 1.0], [0.0, KNEE_BANDWIDTH, 1.0]))

    def load(self, work: StepWork, sms: float) -> Load:
        """Work on so many SMs, more than 0; without what the CPU needs for it."""
        return self._load(self.times.parts(work), sms)

    def _load(self, parts: StepParts, sms: float) -> Load:
        share, bandwidth = sms / self.total, self.bandwidth(sms)
        floor = np.minimum(parts.weight_read, parts.gemm)
        gemm = roofline(floor / bandwidth, compute_within(parts.gemm, floor) / share)
        moved = parts.other + parts.decode_attention
        seconds = gemm + moved / bandwidth + parts.prefill_attention / share + parts.all_reduce
        bus = (floor + moved) / np.where(seconds > 0.0, seconds, 1.0)
        return Load(np.asarray(seconds), np.asarray(np.minimum(bus, bandwidth)))

    def slowdown(self, a: Load, b: Load) -> Floats:
        """Factor by which loads on the two parts slow each other down while both run, 1 or more.

        They share the bus, and `interference` is the same share of what is hidden as on other engines.
        """
        return np.maximum(a.bus + b.bus, 1.0) + self.times.assumptions.interference


def side_by_side(
    times: PdmuxTimes, prefill: StepWork, decode: StepWork, *, batches: Floats | float = 1.0
) -> Floats:
    """Seconds of prefill and decode beside each other in the division that suits them, the CPU left out.

    What is left of one when the other ends has the whole GPU. No loop reaches this: a division is one of a
    few, and requests begin to decode when their prefill ends.

    Args:
        batches: how often `prefill` runs meanwhile, or which part of it.
    """
    least, multiple = sm_step(times.times.hardware)

    def loads(prefill_sms: int, decode_sms: int) -> tuple[Load, Load]:
        load = times.load(prefill, prefill_sms)
        return Load(np.asarray(batches * load.seconds), load.bus), times.load(decode, decode_sms)

    whole = [load.seconds for load in loads(times.total, times.total)]
    best = whole[0] + whole[1]
    for sms in range(least, times.total - least + 1, multiple):
        parts = loads(times.total - sms, sms)
        slow = times.slowdown(*parts)
        ends = [load.seconds * slow for load in parts]
        both = np.minimum(ends[0], ends[1])
        rest = [
            alone * (1.0 - both / np.where(end > 0.0, end, 1.0))
            for alone, end in zip(whole, ends, strict=True)
        ]
        best = np.minimum(best, both + rest[0] + rest[1])
    return np.asarray(best)

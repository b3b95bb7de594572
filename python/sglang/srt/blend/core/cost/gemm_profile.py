"""Measured GEMM times by token count, as seconds per parameter, so that they serve models of any size.

A table row is the time of all GEMMs of one decoder layer on one rank. Divided by the layer's
parameters it depends on the token count and, weakly, on the width of the matrices; a model that was not
profiled takes the table of the profiled one whose layer is nearest in parameters at the same degree of
tensor parallelism.
"""

from __future__ import annotations

import csv
import math
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# GEMM kernels work on tiles of so many rows: above one tile, time is that of the next whole tile. Rounding
# up predicts rows that are not in the table to 3%, plain interpolation to 5%.
TILE_ROWS = 128

# A GEMM is limited by weights for few tokens and by FLOPs for many, and pays part of both in between. The
# p-norm of the two limits with this exponent stays within 11% of a measured Llama-3-8B layer on an A100 from
# 1 to 1024 tokens.
ROOFLINE_NORM = 1.35
"""Exponent of the norm that joins the two limits of a GEMM."""


def roofline(floor: ArrayLike, compute: ArrayLike) -> Floats:
    """Seconds of GEMMs whose weights take `floor` seconds to read, and whose FLOPs take `compute` seconds."""
    p = ROOFLINE_NORM
    joined = (np.asarray(floor, np.float64) ** p + np.asarray(compute, np.float64) ** p) ** (1.0 / p)
    return np.asarray(joined)


def compute_within(gemm: ArrayLike, floor: ArrayLike) -> Floats:
    """The `compute` seconds with which `roofline` gives `gemm`; 0 where that is the floor or less.

    >>> compute_within(roofline(3.0, 4.0), 3.0).round(9).tolist()
    4.0
    """
    p = ROOFLINE_NORM
    rest = np.asarray(gemm, np.float64) ** p - np.asarray(floor, np.float64) ** p
    return np.asarray(np.maximum(rest, 0.0) ** (1.0 / p))


@dataclass(frozen=True, slots=True)
class GemmProfile:
    """Times of one model's decoder layer, measured on one device over a series of token counts.

    Attributes:
        device, model: names as in gpu_gemm_profiles.csv.
        tensor_parallel: ranks that shared the model when it was measured.
        params: parameters of the measured layer on one rank.
        tokens: (n,) token counts, increasing.
        gemm: (n,) seconds of the layer's GEMMs, non-decreasing.
        other: (n,) seconds of the layer's small operators, non-decreasing.
    """

    device: str
    model: str
    tensor_parallel: int
    params: float
    tokens: Floats
    gemm: Floats
    other: Floats

    def gemm_seconds(self, tokens: ArrayLike, params: float) -> Floats:
        """Seconds of GEMMs that multiply `tokens` rows with `params` parameters; 0 for no rows."""
        return self._at(whole_tiles(tokens), self.gemm) * (params / self.params)

    def other_seconds(self, tokens: ArrayLike) -> Floats:
        """Seconds of one layer's norms, rotary embedding, activation and residual adds over `tokens` rows."""
        return self._at(np.asarray(tokens, np.float64), self.other)

    def slowed(self, compute: float, memory: float) -> GemmProfile:
        """The series on a device whose compute and memory take so many times as long.

        What one token takes is reading the weights; what more tokens take beyond that is compute. The small
        operators stream activations.
        """
        floor = self.gemm[0]
        gemm = roofline(memory * floor, compute * compute_within(self.gemm, floor))
        return replace(self, gemm=gemm, other=memory * self.other)

    def _at(self, tokens: Floats, seconds: Floats) -> Floats:
        inside = np.interp(tokens, self.tokens, seconds)
        beyond = seconds[-1] * tokens / self.tokens[-1]  # past the table time is proportional
        measured = np.where(tokens > self.tokens[-1], beyond, inside)
        return np.asarray(np.where(tokens > 0, measured, 0.0))


def whole_tiles(tokens: ArrayLike) -> Floats:
    """Rows that a GEMM kernel computes for so many: above one tile, whole tiles of `TILE_ROWS`."""
    n = np.asarray(tokens, np.float64)
    return np.where(n > TILE_ROWS, np.ceil(n / TILE_ROWS) * TILE_ROWS, n)


@cache
def kernel_figures() -> dict[str, Any]:
    """The contents of gpu_kernels.toml: measured figures and assumptions, each with its source there."""
    return tomllib.loads(resources.files(__package__).joinpath("gpu_kernels.toml").read_text())


@cache
def gemm_profiles() -> tuple[GemmProfile, ...]:
    """All measured series of gpu_gemm_profiles.csv, in file order."""
    text = resources.files(__package__).joinpath("gpu_gemm_profiles.csv").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    series: dict[tuple[str, str, int], list[tuple[float, float, float]]] = {}
    for row in csv.DictReader(lines):
        key = (row["device"], row["model"], int(row["tensor_parallel"]))
        point = (float(row["tokens"]), float(row["gemm_ms"]) * 1e-3, float(row["other_ms"]) * 1e-3)
        series.setdefault(key, []).append(point)
    layer_params = kernel_figures()["layer_params"]
    profiles = []
    for (device, model, degree), points in series.items():
        tokens, gemm, other = np.array(points).T
        profiles.append(GemmProfile(device, model, degree, layer_params[model] / degree, tokens, gemm, other))
    return tuple(profiles)


def find_gemm_profile(hardware: str, *, layer_params: float, tensor_parallel: int) -> GemmProfile | None:
    """The measured series nearest to a model on a hardware profile, or None where nothing was measured.

    Args:
        hardware: name of the profile, as in `Hardware.name`.
        layer_params: parameters of one decoder layer on one rank.
        tensor_parallel: ranks that share the model.
    """
    device = kernel_figures()["tables"].get(hardware)

    def distance(profile: GemmProfile) -> tuple[float, float]:
        degrees = abs(math.log2(profile.tensor_parallel / tensor_parallel))
        # Table length breaks ties: Llama-3-70B was measured to 32768 tokens, Llama-2-70B to 4096.
        return degrees, abs(math.log(profile.params / layer_params)) - 1e-9 * len(profile.tokens)

    return min((p for p in gemm_profiles() if p.device == device), key=distance, default=None)

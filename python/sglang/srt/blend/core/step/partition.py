"""What a request counts for and how KV capacity is divided between both ends (paper 5.3, above Figure 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Steps that a request holds KV without decoding: its prefill, and the step that returns its last token
# after which the scheduler sees it finished. Short answers would otherwise overstay their share.
IDLE_STEPS = 2.0
# Infinite densities (nothing decoded) take part in the equations as this.
DENSEST = 1e9


@dataclass(frozen=True, slots=True)
class Partition:
    """KV tokens of each side.

    Attributes:
        compute: tokens for requests admitted from the compute side (left).
        memory: tokens for requests admitted from the memory side (right).
    """

    compute: float
    memory: float

    @property
    def total(self) -> float:
        return self.compute + self.memory


@njit(cache=True)
def compute_share(root, compute_side, memory_side):  # type: ignore[no-untyped-def]
    """M_L / M, clamped to [0, 1]; 1/2 when both ends have (nearly) the same density."""
    high, low = min(compute_side, DENSEST), min(memory_side, DENSEST)
    if high - low <= 1e-9 * max(high, 1e-12):
        return 0.5
    return min(max((min(root, DENSEST) - low) / (high - low), 0.0), 1.0)


def partition_capacity(capacity: float, *, root: float, compute_side: float, memory_side: float) -> Partition:
    """Split KV capacity so that the blended density equals the root's.

    Solves M_L + M_R = M and M_L * rho_L + M_R * rho_R = M * rho_root. When both ends have the same
    density any split works and the halves are returned; a root outside the two densities (possible
    after many completions) is clamped, so one side gets everything.

    Args:
        capacity: KV capacity M, in tokens.
        root, compute_side, memory_side: densities Comp/Mem, dimensionless and >= 0; infinity is a
            request that decodes nothing.

    Raises:
        ValueError: if compute_side < memory_side (the leaves are not sorted).

    The paper's Figure 6, in GB:

    >>> split = partition_capacity(60, root=1.27, compute_side=3.73, memory_side=0.096)
    >>> round(split.compute, 1), round(split.memory, 1)
    (19.4, 40.6)
    """
    if compute_side < memory_side:
        raise ValueError(f"compute side density {compute_side} is below the memory side's {memory_side}")
    compute = capacity * float(compute_share(root, compute_side, memory_side))
    return Partition(compute, capacity - compute)


def share_tokens(new_tokens: Any, output: Any) -> Any:
    """KV tokens that a request counts for in its side's share; of arrays, one for each.

    On average it holds what it adds to the cache plus half its output (paper 5.3: N = M_side /
    (p + d/2)), for d decoding steps and a few idle ones; only the decoding ones make density.

    Args:
        new_tokens: prompt tokens not shared with KV that is there anyway.
        output: output tokens.

    >>> share_tokens(100, 20)
    100.0
    """
    return (new_tokens + output / 2.0) * output / (output + IDLE_STEPS)

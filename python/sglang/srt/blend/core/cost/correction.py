"""How far a device is from its profile: three factors on the seconds that the profile predicts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.hardware import Hardware

FARTHEST = 16.0
"""A factor is at most this and at least its inverse: what is farther off is no profile of such a device."""


@dataclass(frozen=True, slots=True)
class Correction:
    """How many times as long as its profile says a device takes; 1 is as told.

    >>> Correction(compute=2.0).of(Hardware("mine", flops=4e14, bandwidth=2e12, memory=8e10)).flops / 1e14
    2.0

    Raises:
        ValueError: a factor is beyond `FARTHEST`.

    Attributes:
        compute: for GEMMs beyond their weights, and prefill attention.
        memory: for reading weights, KV cache and activations.
        overhead: for what a pass takes outside the layers.
        tiled: GEMMs follow the two rates on whole tiles of rows, whatever a measured table says of them.
    """

    compute: float = 1.0
    memory: float = 1.0
    overhead: float = 1.0
    tiled: bool = False

    def __post_init__(self) -> None:
        for name in ("compute", "memory", "overhead"):
            if not 1.0 / FARTHEST <= getattr(self, name) <= FARTHEST:
                raise ValueError(f"{name} x {getattr(self, name)}: must be {1 / FARTHEST} to {FARTHEST}")

    def of(self, hardware: Hardware) -> Hardware:
        """The profile with the rates that the device has, under its old name."""
        if self == AS_TOLD:
            return hardware
        return replace(
            hardware, flops=hardware.flops / self.compute, bandwidth=hardware.bandwidth / self.memory
        )

    @property
    def logs(self) -> NDArray[np.float64]:
        """(3,) natural logarithms of compute, memory and overhead."""
        return np.log([self.compute, self.memory, self.overhead])

    @classmethod
    def from_logs(cls, logs: NDArray[np.float64], *, tiled: bool = False) -> Correction:
        """The inverse of `logs`; what is beyond the bounds is put on them."""
        compute, memory, overhead = np.clip(np.exp(logs), 1.0 / FARTHEST, FARTHEST).tolist()
        return cls(compute, memory, overhead, tiled)


AS_TOLD = Correction()
"""The profile is right."""

"""Random lengths with a wanted mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LengthDistribution:
    """Log-normal lengths in tokens, cut off and rounded.

    Attributes:
        mean: of the drawn lengths after cutting off, to 1% for a thousand of them.
        deviation: standard deviation before cutting off; 0 makes all lengths equal.
        low, high: bounds.
        unit: lengths are multiples of this (256 tokens per video frame).
    """

    mean: float
    deviation: float = 0.0
    low: int = 1
    high: int = 1 << 17
    unit: int = 1

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """(count,) lengths."""
        if not self.low <= self.mean <= self.high:
            raise ValueError(f"mean {self.mean} lies outside {self.low}..{self.high}")
        variance = np.log1p((self.deviation / self.mean) ** 2)
        shape = np.exp(rng.normal(0.0, np.sqrt(variance), count))

        def lengths(scale: float) -> NDArray[np.int64]:
            units = np.maximum(np.rint(np.clip(scale * shape, self.low, self.high) / self.unit), 1)
            return np.asarray(units * self.unit, np.int64)

        below, above = 0.0, 64.0 * self.mean
        for _ in range(50):  # cutting off moves the mean; scale until it is right
            middle = (below + above) / 2
            if count and lengths(middle).mean() < self.mean:
                below = middle
            else:
                above = middle
        return lengths(above)

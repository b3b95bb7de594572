"""What steps were predicted to take, and what they took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepReport:
    """Predicted against real step times, since the start.

    Attributes:
        hardware: the profile's name.
        compute, memory, overhead: its `Correction` now.
        steps: how many were measured.
        seconds: that they took.
        predicted_seconds: that they should have taken, each by the correction of its time.
        error: mean relative error of the last steps with the present correction; 0 before there are any.
    """

    hardware: str
    compute: float
    memory: float
    overhead: float
    steps: int
    seconds: float
    predicted_seconds: float
    error: float

    @property
    def line(self) -> str:
        """For the log and for people."""
        off = 100.0 * (self.predicted_seconds / self.seconds - 1.0) if self.seconds > 0 else 0.0
        factors = ", ".join(
            f"{name} x {value:.2f}"
            for name in ("compute", "memory", "overhead")
            if (value := getattr(self, name)) != 1.0
        )
        return (
            f"{self.steps:,} steps took {self.seconds:.1f} s, predicted {self.predicted_seconds:.1f} s "
            f"({off:+.0f}%) for {self.hardware}, "
            + (f"corrected: {factors}" if factors else "as its profile says")
        )

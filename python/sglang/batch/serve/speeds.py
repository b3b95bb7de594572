"""How fast the service is, over the last hour."""

from __future__ import annotations

from collections import deque

from sglang.batch.serve.sums import Totals

EVERY = 10.0
"""Seconds between two samples."""

KEPT = 360
"""Samples that are kept: an hour."""

WIDTH, HEIGHT = 720, 120
"""Of a chart of them, in its own units."""


class Speeds:
    """Tokens per second of the whole service, sampled over the last hour."""

    def __init__(self) -> None:
        self._last: tuple[float, Totals] | None = None
        self.samples: deque[tuple[float, float]] = deque(maxlen=KEPT)
        """Tokens per second in, cached ones included, and out."""

    def note(self, now: float, sums: Totals) -> None:
        """Take a sample.

        Args:
            now: seconds of a clock that only goes forward.
        """
        if self._last is not None and now > self._last[0]:
            before, seconds = self._last[1], now - self._last[0]
            self.samples.append(
                (
                    max(sums.prompt_tokens - before.prompt_tokens, 0) / seconds,
                    max(sums.completion_tokens - before.completion_tokens, 0) / seconds,
                )
            )
        self._last = now, sums

    def line(self, column: int) -> str:
        """Points of an SVG polyline; the newest sample is at the right.

        Args:
            column: 0 for tokens in, 1 for tokens out.
        """
        top = self.top or 1.0
        step = WIDTH / (KEPT - 1)
        first = KEPT - len(self.samples)
        return " ".join(
            f"{(first + i) * step:.1f},{HEIGHT * (1 - sample[column] / top):.1f}"
            for i, sample in enumerate(self.samples)
        )

    @property
    def top(self) -> float:
        """The highest speed that is kept."""
        return max((max(sample) for sample in self.samples), default=0.0)

"""How fast the service is, and what it uses of the engine, over the last hour."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from sglang.batch.run.blend_history import BlendState
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
        """Points of an SVG polyline, see `polyline`.

        Args:
            column: 0 for tokens in, 1 for tokens out.
        """
        return polyline([sample[column] for sample in self.samples], self.top)

    @property
    def top(self) -> float:
        """The highest speed that is kept."""
        return max((max(sample) for sample in self.samples), default=0.0)


class Uses:
    """What the engine uses of its hardware, as the blend scheduler's cost model counts its work.

    Attributes:
        hardware: what the model takes it for; None until there is anything to see.
    """

    def __init__(self) -> None:
        self._last: tuple[float, float, float] | None = None
        self.hardware: str | None = None
        self.samples: deque[tuple[float, float]] = deque(maxlen=KEPT)
        """Shares of the peak of compute and of memory bandwidth, 0 and up."""
        self.sharing: float | None = None
        """Share of the admitted prompt tokens that the cache served, 0 to 1."""

    def note(self, now: float, state: BlendState | None) -> None:
        """Take a sample.

        Args:
            now: seconds of a clock that only goes forward.
            state: the scheduler's; None where there is none now.
        """
        outlook = None if state is None else state.get("outlook")
        if state is None or outlook is None:
            self._last = None
            return
        self.hardware, self.sharing = state["hardware"], state.get("sharing_achieved")
        compute, memory = outlook["compute"], outlook["memory"]
        if self._last is not None and now > self._last[0]:
            seconds = now - self._last[0]
            done = max(compute - self._last[1], 0.0), max(memory - self._last[2], 0.0)
            self.samples.append((done[0] / seconds, done[1] / seconds))
        self._last = now, compute, memory

    def line(self, column: int) -> str:
        """Points of an SVG polyline, see `polyline`.

        Args:
            column: 0 for compute, 1 for memory bandwidth.
        """
        return polyline([sample[column] for sample in self.samples], self.top)

    @property
    def top(self) -> float:
        """The highest share that is kept."""
        return max((max(sample) for sample in self.samples), default=0.0)


def polyline(values: Sequence[float], top: float) -> str:
    """Write points of an SVG polyline, WIDTH by HEIGHT; the newest value is at the right.

    Args:
        top: the value at the upper edge.
    """
    step, first = WIDTH / (KEPT - 1), KEPT - len(values)
    return " ".join(
        f"{(first + i) * step:.1f},{HEIGHT * (1 - value / (top or 1.0)):.1f}"
        for i, value in enumerate(values)
    )

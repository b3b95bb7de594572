"""How fast the engine is, measured: seconds of the whole engine that a line of a batch takes."""

from __future__ import annotations

from collections import deque

from sglang.batch.records import Usage

OUTPUT_WEIGHT = 4.0
"""What an output token costs beside a prompt token that is computed."""

GUESS = 0.2
"""Seconds that a line takes as long as nothing was measured: rather too many, so that deadlines are safe."""

SPAN = 300.0
"""Busy seconds that are looked back on; the later half of them is what the speed is measured over."""

AGREE = 1.25
"""Times that the speeds of both halves differ at most where the speed is sure: lines that take long are the
last to be done, so that an engine seems slow at first."""

EVERY = 1.0
"""Busy seconds between two samples."""

ENOUGH = 16
"""Answers from which something is known."""


def line_cost(usage: Usage) -> float:
    """What a line cost the engine, in prompt tokens."""
    return usage.prompt - usage.cached + OUTPUT_WEIGHT * usage.completion


class Costs:
    """What the lines of one batch cost on average.

    Attributes:
        expected: before any is known, in prompt tokens; None without an idea.
    """

    def __init__(self, expected: float | None = None) -> None:
        self.expected = expected
        self.lines = 0
        self.total = 0.0

    def note(self, cost: float) -> None:
        """Take a line's cost into account."""
        self.lines += 1
        self.total += cost

    @property
    def known(self) -> bool:
        """Whether enough of them were measured."""
        return self.lines >= ENOUGH

    @property
    def mean(self) -> float | None:
        """Of a line, in prompt tokens; None while nothing is known."""
        return self.total / self.lines if self.known else self.expected


class Pace:
    """The engine's speed over its last busy minutes.

    Args:
        now: seconds of a clock that only goes forward.

    Attributes:
        modelled: prompt tokens that the engine's own model says it is worth in a second; None without one.
    """

    def __init__(self, now: float) -> None:
        self._all = Costs()
        self._busy = 0.0
        self._now, self._running = now, False
        self._samples = deque([(0.0, 0.0)])
        self.modelled: float | None = None

    def look(self, now: float, *, running: bool) -> None:
        """Take notice of the time, and whether the engine has anything to do from now on."""
        if self._running:
            self._busy += max(now - self._now, 0.0)
        self._now, self._running = now, running
        if self._busy >= self._samples[-1][0] + EVERY:
            self._samples.append((self._busy, self._all.total))
            while self._samples[-1][0] - self._samples[0][0] > SPAN:
                self._samples.popleft()

    def note(self, cost: float) -> None:
        """Take an answered line into account."""
        self._all.note(cost)

    @property
    def per_second(self) -> float | None:
        """Prompt tokens that the engine is worth in a second; None while nothing is known."""
        later = self._halves()[1]
        measured = later if later > 0.0 and self._all.lines >= ENOUGH else None
        return measured if self.modelled is None else self.modelled

    @property
    def sure(self) -> bool:
        """Whether the speed is known well enough to rely on."""
        earlier, later = self._halves()
        agree = self.per_second is not None and earlier * AGREE > later and later * AGREE > earlier
        return agree or self.modelled is not None

    def _halves(self) -> tuple[float, float]:
        """Speeds of the earlier and the later half of what is looked back on; 0 where there is none."""
        first, last = self._samples[0], self._samples[-1]
        middle = next(sample for sample in reversed(self._samples) if 2 * sample[0] <= first[0] + last[0])
        return _speed(first, middle), _speed(middle, last)

    def line_cost(self, costs: Costs) -> float | None:
        """What a line of a batch costs, in prompt tokens; as all lines on average where it is not known."""
        return costs.mean or self._all.mean

    def line_seconds(self, costs: Costs) -> float:
        """Seconds of the whole engine that a line of a batch takes."""
        speed, mean = self.per_second, self.line_cost(costs)
        return GUESS if speed is None or mean is None else mean / speed


def _speed(before: tuple[float, float], after: tuple[float, float]) -> float:
    return (after[1] - before[1]) / (after[0] - before[0]) if after[0] > before[0] else 0.0

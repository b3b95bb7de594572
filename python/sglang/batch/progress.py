"""The progress of a batch on stderr: a bar for people at a terminal, a line now and then for a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from tqdm import tqdm

FIRST_PAUSE, LONGEST_PAUSE, GROWTH = 10.0, 60.0, 1.25
"""Seconds between two lines in a log: the first pause, the longest, and how it grows."""

REDRAW = 0.1
"""Seconds between two drawings of a bar at least."""


class Progress(Protocol):
    """What is shown of a job: lines done, and a text about it."""

    @property
    def done(self) -> int: ...

    def text(self) -> str: ...


Show = Callable[[Progress], None]


@contextmanager
def progress_bar(*, total: int | None, done: int = 0, quiet: bool, log: bool = False) -> Iterator[Show]:
    """Show progress on stderr.

    Args:
        total: lines in all, None where nobody knows; done: those that were done before.
        log: write lines where there is no terminal; otherwise nothing is shown there.

    Yields:
        A function that is called whenever something may have changed, as often as one likes.
    """
    if quiet or (not log and not sys.stderr.isatty()):
        yield lambda progress: None
    elif not sys.stderr.isatty():
        yield Log(total)
    else:
        count = "{n_fmt}" if total is None else "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}"
        layout = f"{{desc}}: {count} [{{elapsed}}{{postfix}}]"
        with tqdm(total=total, initial=done, desc="batch", dynamic_ncols=True, bar_format=layout) as drawn:
            bar = Bar(drawn)
            yield bar
            bar.draw()


class Bar:
    """Draws a bar anew when the last drawing is a moment ago."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar
        self._progress: Progress | None = None
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        self._progress = progress
        if time.monotonic() >= self._next:
            self.draw()

    def draw(self) -> None:
        """Draw what was shown last."""
        if self._progress is not None:
            self._next = time.monotonic() + REDRAW
            self._bar.n = self._progress.done
            self._bar.set_postfix_str(self._progress.text(), refresh=True)


class Log:
    """Writes a line when the last one is a while ago, and ever more rarely.

    Args:
        clock: tells seconds.
    """

    def __init__(self, total: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total, clock
        self._pause = FIRST_PAUSE
        self._next = clock() + FIRST_PAUSE

    def __call__(self, progress: Progress) -> None:
        now = self._clock()
        if now < self._next:
            return
        self._pause = min(self._pause * GROWTH, LONGEST_PAUSE)
        self._next = now + self._pause
        count = f"{progress.done:,} lines"
        if self._total:
            count = f"{progress.done:,} of {self._total:,} lines ({progress.done / self._total:.0%})"
        print(f"sglang-batch: {count}: {progress.text()}", file=sys.stderr, flush=True)

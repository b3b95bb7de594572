"""The progress bar of a run: requests done, tokens per second."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm


class Progress(Protocol):
    """What a bar shows of a job: lines done, and tokens in and out per second."""

    @property
    def done(self) -> int: ...

    @property
    def tokens_per_second(self) -> float: ...


@contextmanager
def progress_bar(*, total: int | None, done: int = 0, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Show a bar on stderr, or nothing where nobody would see it move.

    Args:
        total: lines in all, None where nobody knows; done: those that were done before.

    Yields:
        A function that a job calls after every record.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda progress: None
        return
    with tqdm(total=total, initial=done, unit="req", desc="batch", dynamic_ncols=True) as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix_str(f"{progress.tokens_per_second:,.0f} tokens/s", refresh=False)
            bar.update(progress.done - bar.n)

        yield show

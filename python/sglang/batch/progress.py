"""The progress bar of a run: requests done, tokens per second."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from sglang.batch.run.job import Tally


@contextmanager
def progress_bar(path: Path, *, quiet: bool) -> Iterator[Callable[[Tally], None]]:
    """Show a bar on stderr over the lines of `path`, or nothing where nobody would see it move.

    Yields:
        A function that a job calls after every record.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda tally: None
        return
    with tqdm(total=_count_lines(path), unit="req", desc="batch", dynamic_ncols=True) as bar:

        def show(tally: Tally) -> None:
            bar.set_postfix_str(f"{tally.tokens_per_second:,.0f} tokens/s", refresh=False)
            bar.update(tally.done - bar.n)

        yield show


def _count_lines(path: Path) -> int | None:
    """Count the lines that are not blank; None for what cannot be read twice, as a pipe."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())

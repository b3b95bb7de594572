"""Factories for tests of the journal."""

from __future__ import annotations

from pathlib import Path

from sglang.batch.records import Usage
from sglang.batch.run.journal import Journal, LineRow, Log, Recorded
from sglang.batch.run.record_log import Span


def row(position: int, custom_id: str | None = "") -> LineRow:
    """A line of ten bytes; its custom_id is its position unless given."""
    name = str(position) if custom_id == "" else custom_id
    identity = None if name is None else name.encode()
    return LineRow(position, 0, position + 1, position * 10, 10, b"h%d" % position, identity)


def recorded(position: int, offset: int, *, code: str | None = None, log: Log | None = None) -> Recorded:
    """A record of ten bytes."""
    where = log if log is not None else Log.ANSWERS if code is None else Log.ERRORS
    return Recorded(
        position, where, Span(offset, 10), code, Usage(prompt=5, cached=2, completion=3, reasoning=1)
    )


def journal(folder: Path, *, lines: int) -> Journal:
    """A new journal with pending lines."""
    made = Journal(folder / "journal", create=True)
    made.put_lines([row(position) for position in range(lines)])
    return made

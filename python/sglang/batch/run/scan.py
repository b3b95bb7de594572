"""The input and the journal agree: line for line the same, new lines at the end of the input added."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO

from sglang.batch.input.lines import Line, bare, content_hash, read_lines
from sglang.batch.input.source import Source, open_source
from sglang.batch.records import custom_id_hash
from sglang.batch.run.answer_key import answer_key
from sglang.batch.run.files import JobFiles
from sglang.batch.run.journal import Journal, LineRow, OpenLine
from sglang.batch.usage import BadUsage

ROWS = 1000
"""Lines that one transaction adds."""


class InputLines:
    """Reads single lines of the input again.

    Args:
        names: of the inputs, for messages.
        paths: where their lines can be read in place: the inputs, or their spools.
    """

    def __init__(self, names: Sequence[str], paths: Sequence[Path]) -> None:
        self.names = names
        self._files = [path.open("rb") for path in paths]

    def read(self, line: OpenLine) -> bytes:
        """Read a line without what surrounds it.

        Raises:
            BadUsage: it is not the line that was there when the run began.
        """
        raw = os.pread(self._files[line.input].fileno(), line.length, line.offset)
        if content_hash(raw) != line.hash:
            raise BadUsage(f"{self.names[line.input]}: line {line.number} has changed since the run began")
        return bare(raw)

    def file(self, line: OpenLine) -> str | None:
        """Name a line's input where there are several."""
        return self.names[line.input] if len(self.names) > 1 else None

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def scan(journal: Journal, sources: Sequence[Source], files: JobFiles) -> InputLines:
    """Compare every line with the journal, and add those that it does not have yet.

    Raises:
        BadUsage: a line that the journal has is another one now, or is gone; nothing was changed then.
    """
    with ExitStack() as stack:
        known_lines = Journal(journal.path, read_only=True)
        stack.callback(known_lines.close)
        known = known_lines.lines()
        paths = []
        position = 0
        for index, source in enumerate(sources):
            with _lines(source, files.spool(index), position) as (path, lines):
                while page := list(islice(lines, ROWS)):
                    changed = []
                    for line in page:
                        was = next(known, None)
                        row = _row(index, line, position, was, source)
                        if row != was:
                            changed.append(row)
                        position += 1
                    if changed:
                        journal.put_lines(changed)
            paths.append(path)
        gone = next(known, None)
    if gone is not None:
        raise BadUsage(
            f"line {gone.number} of input {gone.input + 1} is gone, the last of the {position:,} lines left"
            f" is in {sources[-1].name}; give the same input again, or pass --restart"
        )
    return InputLines([source.name for source in sources], paths)


def _row(index: int, line: Line, position: int, known: LineRow | None, source: Source) -> LineRow:
    """Describe a line; what follows from its content is taken from the row that the journal has of it."""
    content = content_hash(line.raw)
    if known is not None and known.hash != content:
        raise BadUsage(
            f"{source.name}: line {line.number} is not what it was when the job began (lines may be added"
            " behind the last one only); give the same input again, or pass --restart"
        )
    return LineRow(
        position=position,
        input=index,
        number=line.number,
        offset=line.offset,
        length=len(line.raw),
        hash=content,
        custom_id=known.custom_id if known is not None else custom_id_hash(line.text),
        # An older version may have left it out.
        key=known.key if known is not None and known.key is not None else answer_key(line.text),
    )


@contextmanager
def _lines(source: Source, spool: Path, first: int) -> Iterator[tuple[Path, Iterator[Line]]]:
    """Open a source; yields where its lines can be read in place, and the lines with their offsets there.

    Args:
        first: lines of the sources before it.
    """
    if source.standard_input and spool.exists() and sys.stdin.isatty():
        with spool.open("rb") as lines:
            yield spool, read_lines(lines)
        return
    with open_source(source, first=first) as opened:
        if opened.in_place and source.path is not None and source.path.is_file():
            yield source.path, read_lines(opened.lines)
            return
        new = spool.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
            spooled = _spooled(read_lines(opened.lines), file)
            start = next(spooled, None)
            if start is None and source.standard_input and spool.exists():
                # Nobody pipes it a second time: what came the first time is still here.
                with spool.open("rb") as lines:
                    yield spool, read_lines(lines)
                return
            yield spool, chain([start] if start is not None else [], spooled)
            file.flush()
            os.fsync(file.fileno())
    os.replace(new, spool)


def _spooled(lines: Iterator[Line], file: IO[bytes]) -> Iterator[Line]:
    """Write lines one behind the other, blank ones as empty lines so that numbers stay; yields them with
    their offsets there."""
    number = offset = 0
    for line in lines:
        blank = b"\n" * (line.number - number - 1)
        file.write(blank + line.text + b"\n")
        offset += len(blank)
        yield Line(line.number, offset, line.text + b"\n")
        number, offset = line.number, offset + len(line.text) + 1

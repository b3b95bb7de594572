"""An append-only file of records with a committed length: bytes beyond it do not exist.

Whoever keeps the committed length (the journal) decides what is in the file. Nothing is ever guessed from
its bytes: a tail that a killed writer left is cut, whole records in it included.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Disk(Protocol):
    """The calls of `os` that write; tests let them fail."""

    def pwrite(self, fd: int, data: bytes, offset: int, /) -> int: ...

    def fdatasync(self, fd: int, /) -> None: ...

    def ftruncate(self, fd: int, length: int, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Span:
    """Where a record is, in bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The offset behind the record."""
        return self.offset + self.length


class RecordLog:
    """A file of records.

    Args:
        path: made with mode 0600 if it is not there; never a symbolic link.
        length: committed bytes.

    Attributes:
        length: committed bytes; the caller's word.
    """

    def __init__(self, path: Path, *, length: int, disk: Disk = os) -> None:
        self.path = path
        self.length = length
        self._disk = disk
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def append(self, records: Sequence[bytes]) -> list[Span]:
        """Write records behind the committed ones. They exist once `sync` and `commit` have been called."""
        data = memoryview(b"".join(records))
        offset = self.length
        while data:
            written = self._disk.pwrite(self._fd, data, offset)  # type: ignore[arg-type]
            data, offset = data[written:], offset + written
        spans, end = [], self.length
        for record in records:
            spans.append(Span(end, len(record)))
            end = spans[-1].end
        return spans

    def sync(self) -> None:
        """Return when what was written is on the disk."""
        self._disk.fdatasync(self._fd)

    def commit(self, length: int) -> None:
        """Take note that `length` bytes are committed."""
        self.length = length

    def cut(self) -> None:
        """Drop everything behind the committed length."""
        self._disk.ftruncate(self._fd, self.length)

    def read(self, span: Span) -> bytes:
        """Read one record."""
        return os.pread(self._fd, span.length, span.offset)

    def size(self) -> int:
        """Bytes in the file, committed or not."""
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        """Close the file; what is not committed stays for `cut`."""
        os.close(self._fd)

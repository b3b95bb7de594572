"""A stream of bytes becomes lines: the only code that splits, and that says what belongs to a line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

UTF8_MARK = b"\xef\xbb\xbf"
"""Bytes that some editors put at the start of a file; `cat` moves them to the start of later lines."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank.

    Attributes:
        number: of the line in its file, from 1; blank lines count.
        offset: bytes before it in the stream.
        raw: its bytes as they were read, line end included.
    """

    number: int
    offset: int
    raw: bytes

    @property
    def text(self) -> bytes:
        """The line without its end, surrounding space and byte order marks."""
        return bare(self.raw)


def read_lines(stream: Iterable[bytes]) -> Iterator[Line]:
    r"""Leave out the blank lines of a stream.

    >>> [(line.number, line.offset, line.text) for line in read_lines([b"{}\n", b"\n", b" [1]"])]
    [(1, 0, b'{}'), (3, 4, b'[1]')]

    Args:
        stream: lines that end with a newline, the last one perhaps not, as binary files give them.
    """
    offset = 0
    for number, raw in enumerate(stream, start=1):
        if bare(raw):
            yield Line(number, offset, raw)
        offset += len(raw)


def bare(raw: bytes) -> bytes:
    r"""Take a line's bytes without its end, surrounding space and byte order marks.

    >>> bare(b"\xef\xbb\xbf {} \r\n")
    b'{}'
    """
    text = raw.strip()
    while text.startswith(UTF8_MARK):
        text = text.removeprefix(UTF8_MARK).strip()
    return text


def content_hash(raw: bytes) -> bytes:
    """Hash what `bare` leaves of a line, 16 bytes of BLAKE2b: equal hashes mean equal lines."""
    return hashlib.blake2b(bare(raw), digest_size=16).digest()

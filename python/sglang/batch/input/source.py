"""Names on a command line become byte streams of UTF-8 lines, whatever the files are packed or written in.

Compression (gzip, zstd) and encodings (UTF-16, UTF-32) are recognised by the first bytes, not by names.
"""

from __future__ import annotations

import argparse
import codecs
import glob
import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import zstandard

from sglang.batch.input.lines import Line, read_lines
from sglang.batch.usage import BadUsage

STANDARD_INPUT = "-"

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst")
"""Names of the files that are read in a folder."""

HEAD = 1 << 16
"""Bytes at the start of a stream that tell what it is."""

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

ENCODINGS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"{\0", "utf-16-le"),
    (b"\0{", "utf-16-be"),
)
"""First bytes of a stream that is not UTF-8, and its encoding; without a mark, a line's first brace tells."""


@dataclass(frozen=True)
class Source:
    """One input: a file, or standard input.

    Attributes:
        name: for messages.
        path: None for standard input.
    """

    name: str
    path: Path | None


@dataclass(frozen=True)
class Opened:
    """A source that is being read.

    Attributes:
        lines: the stream, unpacked and in UTF-8, line by line.
        in_place: whether an offset in `lines` is the same offset in the file, so that a line can be read
            there again.
    """

    lines: IO[bytes]
    in_place: bool


def add_input(parser: argparse.ArgumentParser, *, more: str = "") -> None:
    """Add `--input`, which several commands have."""
    parser.add_argument(
        "-i",
        "--input",
        nargs="+",
        action="extend",
        metavar="FILE",
        help=f"requests, OpenAI Batch input format; also gzip and zstd, folders, globs{more}",
    )


def find_sources(names: Sequence[str], *, without: Path | None = None) -> tuple[Source, ...]:
    """Find what names mean: files, folders (their files in SUFFIXES, by name), globs, `-`.

    Args:
        without: an output file. Neither it nor files beside it whose names begin with its name are inputs of
            a folder or a glob.

    Raises:
        BadUsage: a name means nothing, or something that cannot be read.
    """
    sources: list[Source] = []
    for name in names:
        sources += _find(name, without)
    if sum(source.path is None for source in sources) > 1:
        raise BadUsage("--input -: standard input can be read only once")
    return tuple(sources)


def _find(name: str, without: Path | None) -> list[Source]:
    path = Path(name)
    if name == STANDARD_INPUT:
        return [Source("standard input", None)]
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if file.name.endswith(SUFFIXES)]
        wanted = f"no file in it ends in {', '.join(SUFFIXES)}"
    elif not path.exists() and glob.has_magic(name):
        found = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        wanted = "no file matches"
    else:
        _check_readable(path)
        return [Source(name, path)]
    found = [file for file in found if file.is_file() and not _belongs_to(file, without)]
    if not found:
        raise BadUsage(f"--input {name}: {wanted}")
    for file in found:
        _check_readable(file)
    return [Source(str(file), file) for file in found]


def _check_readable(path: Path) -> None:
    try:
        if not path.is_fifo():  # opening one would wait, and take what its writer says
            path.open("rb").close()
    except OSError as error:
        raise BadUsage(f"--input {path}: cannot be read ({error.strerror})") from error


def _belongs_to(file: Path, output: Path | None) -> bool:
    """Tell whether a file is an output, or one of the files that a run keeps beside it."""
    if output is None or file.resolve().parent != output.resolve().parent:
        return False
    return file.name == output.name or file.name.startswith(f"{output.name}.")


@contextmanager
def open_source(source: Source) -> Iterator[Opened]:
    """Open a source for reading its lines.

    Raises:
        BadUsage: the source ends early or is damaged; raised while it is read, too.
    """
    file = sys.stdin.buffer if source.path is None else source.path.open("rb")
    try:
        yield _unpacked(file)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadUsage(f"--input {source.name}: is damaged or cut off ({error})") from error
    finally:
        if source.path is not None:
            file.close()


def read_sources(sources: Sequence[Source]) -> Iterator[Line]:
    """Read the lines of several sources, one after the other; raises what `open_source` does."""
    for source in sources:
        with open_source(source) as opened:
            yield from read_lines(opened.lines)


def _unpacked(file: IO[bytes]) -> Opened:
    stream, in_place = file, True
    while True:
        head, stream = _head(stream)
        if head.startswith(GZIP):
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=stream))
        elif head.startswith(ZSTD):
            stream = _buffered(_zstd(), stream)
        else:
            break
        in_place = False
    encoding = next((name for mark, name in ENCODINGS if head.startswith(mark)), None)
    if encoding is not None:
        return Opened(_buffered(_utf8_from(encoding), stream), in_place=False)
    if b"\r" in head[:-1] and b"\n" not in head:
        return Opened(_buffered(lambda chunk: chunk.replace(b"\r", b"\n"), stream), in_place)
    return Opened(stream, in_place)


def _head(stream: IO[bytes]) -> tuple[bytes, IO[bytes]]:
    """Read a stream's first bytes; returns them and the whole stream."""
    head = b""
    while len(head) < HEAD and (more := stream.read(HEAD - len(head))):
        head += more
    return head, _buffered(None, stream, head)


def _zstd() -> Callable[[bytes], bytes]:
    """Make a decompressor. (zstandard's own stream takes a file that is cut off for a short one.)"""
    frame, begun = zstandard.ZstdDecompressor().decompressobj(), False

    def translate(chunk: bytes) -> bytes:
        nonlocal frame, begun
        if not chunk and begun:
            raise EOFError("the last frame has no end")
        texts = []
        while chunk:
            texts.append(frame.decompress(chunk))
            chunk, begun = frame.unused_data, not frame.eof
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
        return b"".join(texts)

    return translate


def _utf8_from(encoding: str) -> Callable[[bytes], bytes]:
    """Make a translation into UTF-8. What the encoding does not allow becomes bytes that UTF-8 does not
    allow, so that the line they are in is refused and no other."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")

    def translate(chunk: bytes) -> bytes:
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError:
            return b"\xff"
        return text.encode("utf-8", "surrogatepass")

    return translate


class _Stream(io.RawIOBase):
    """A stream that continues `head`, each chunk translated; an empty chunk is the end."""

    def __init__(self, translate: Callable[[bytes], bytes] | None, rest: IO[bytes], head: bytes) -> None:
        self._translate = translate
        self._rest = rest
        self._ready = memoryview(head)
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready and not self._ended:
            chunk = self._rest.read(HEAD)
            self._ended = not chunk
            self._ready = memoryview(self._translate(chunk) if self._translate else chunk)
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


def _buffered(translate: Callable[[bytes], bytes] | None, rest: IO[bytes], head: bytes = b"") -> IO[bytes]:
    return io.BufferedReader(_Stream(translate, rest, head), buffer_size=HEAD)

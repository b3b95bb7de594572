"""Names on a command line become byte streams of UTF-8 lines, whatever the files are packed or written in.

Compression (gzip, zstd), encodings (UTF-16, UTF-32), Parquet and Arrow are recognised by the first bytes, CSV
by its name.
"""

from __future__ import annotations

import argparse
import codecs
import glob
import gzip
import io
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import zstandard

from sglang.batch.input.lines import Line, read_lines
from sglang.batch.input.rows import RowFormat, add_row_arguments
from sglang.batch.usage import BadUsage

if TYPE_CHECKING:
    from sglang.batch.input.tables import Table

STANDARD_INPUT = "-"

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst")
"""Names of the files that are read in a folder."""

CSV_SUFFIXES = tuple(f".{kind}{packed}" for kind in ("csv", "tsv") for packed in ("", ".gz", ".zst"))

TABLE_SUFFIXES = (".parquet", ".arrow", *CSV_SUFFIXES)
"""Names of the tables that are read in a folder, beside SUFFIXES, where rows are to become requests."""

MAGIC = ((b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"\xff\xff\xff\xff", "arrow"))
"""First bytes of tables, and their kinds; the last is Arrow's stream format."""

LINES = "lines"
"""Kind of what is no table."""

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
    """One input: a file, an address that fsspec reads, or standard input.

    Attributes:
        name: for messages.
        path: of a file; else None.
        url: an address, secrets included; else None.
        kind: `lines`, or a table's: `parquet`, `arrow`, `csv`, `tsv`.
        rows: how rows become requests; None where lines are requests.
    """

    name: str
    path: Path | None
    url: str | None = None
    kind: str = LINES
    rows: RowFormat | None = None

    @property
    def standard_input(self) -> bool:
        """Whether it is standard input."""
        return self.path is None and self.url is None


@dataclass(frozen=True)
class Opened:
    """A source that is being read.

    Attributes:
        lines: the stream, unpacked and in UTF-8, line by line; rows as the requests that they become.
        in_place: whether an offset in `lines` is the same offset in the file, so that a line can be read
            there again.
    """

    lines: Iterable[bytes]
    in_place: bool


def add_input(parser: argparse.ArgumentParser, *, more: str = "") -> None:
    """Add `--input` and how its rows become requests, which several commands have."""
    parser.add_argument(
        "-i",
        "--input",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="requests, OpenAI Batch input format; also gzip and zstd, folders, globs, https://, s3://, gs://,"
        f" hf://, and tables with --prompt-template or --messages-column{more}",
    )
    add_row_arguments(parser)


def find_sources(
    names: Sequence[str], *, rows: RowFormat | None = None, without: Path | None = None
) -> tuple[Source, ...]:
    """Find what names mean: files, folders (their files in SUFFIXES, by name), globs, addresses, `-`.

    Args:
        rows: how rows become requests; None where lines are requests.
        without: an output file. Neither it nor files beside it whose names begin with its name are inputs of
            a folder or a glob.

    Raises:
        BadUsage: a name means nothing, or something that cannot be read.
    """
    sources: list[Source] = []
    for name in names:
        sources += _find_remote(name, rows) if "://" in name else _find(name, rows, without)
    if sum(source.standard_input for source in sources) > 1:
        raise BadUsage("--input -: standard input can be read only once")
    return tuple(sources)


def _find(name: str, rows: RowFormat | None, without: Path | None) -> list[Source]:
    path = Path(name)
    if name == STANDARD_INPUT:
        return [Source("standard input", None, rows=rows)]
    if path.is_dir():
        suffixes = SUFFIXES if rows is None else SUFFIXES + TABLE_SUFFIXES
        found = _dataset_files(path) or [
            file for file in sorted(path.iterdir()) if file.name.endswith(suffixes)
        ]
        wanted = f"no file in it ends in {', '.join(suffixes)}"
    elif not path.exists() and glob.has_magic(name):
        found = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        wanted = "no file matches"
    else:
        return [_source(name, path, rows)]
    found = [file for file in found if file.is_file() and not _belongs_to(file, without)]
    if not found:
        raise BadUsage(f"--input {name}: {wanted}")
    return [_source(str(file), file, rows) for file in found]


def _source(name: str, path: Path, rows: RowFormat | None) -> Source:
    """Describe a file, after checking that it can be read."""
    try:
        # Opening a pipe would wait, and take what its writer says.
        head = b"" if path.is_fifo() else _first_bytes(path.open("rb"))
    except OSError as error:
        raise BadUsage(f"--input {path}: cannot be read ({error.strerror})") from error
    return Source(name, path, kind=_kind(name, head, rows), rows=rows)


def _find_remote(name: str, rows: RowFormat | None) -> list[Source]:
    from sglang.batch.input.remote import find_remote, open_remote, shown

    urls = find_remote(name, SUFFIXES if rows is None else SUFFIXES + TABLE_SUFFIXES)
    if not urls:
        raise BadUsage(f"--input {shown(name)}: no file matches")
    return [
        Source(shown(url), None, url, _kind(shown(url), _first_bytes(open_remote(url)), rows), rows)
        for url in urls
    ]


def _first_bytes(file: IO[bytes]) -> bytes:
    with closing(file):
        return file.read(max(len(magic) for magic, _ in MAGIC))


def _kind(name: str, head: bytes, rows: RowFormat | None) -> str:
    kind = next((kind for magic, kind in MAGIC if head.startswith(magic)), LINES)
    if kind == LINES and name.endswith(CSV_SUFFIXES):
        kind = Path(name.removesuffix(".gz").removesuffix(".zst")).suffix[1:]
    if kind != LINES and rows is None:
        raise BadUsage(f"--input {name}: is a table; say with --prompt-template what to ask of a row")
    return kind


def _dataset_files(folder: Path) -> list[Path]:
    """Find the files of a dataset that Hugging Face's `save_to_disk` wrote; none if the folder is no such."""
    try:
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    else:
        raise BadUsage(f"--input {folder}: has several splits; name one: {', '.join(map(str, splits))}")
    try:  # beside them lie caches that are no part of it
        state = json.loads((folder / "state.json").read_text())
        return [folder / file["filename"] for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _belongs_to(file: Path, output: Path | None) -> bool:
    """Tell whether a file is an output, or one of the files that a run keeps beside it."""
    if output is None or file.resolve().parent != output.resolve().parent:
        return False
    return file.name == output.name or file.name.startswith(f"{output.name}.")


@contextmanager
def open_source(source: Source, *, first: int = 0) -> Iterator[Opened]:
    """Open a source for reading its lines.

    Args:
        first: lines of the sources before it, for rows that are numbered.

    Raises:
        BadUsage: the source ends early, is damaged, or lacks a column; raised while it is read, too.
    """
    rows = source.rows
    if rows is not None and source.kind != LINES:
        with open_table(source) as table:
            yield Opened(_request_lines(source, table, rows, first), in_place=False)
        return
    with _open(source) as file:
        lines, in_place = _unpacked(file)
        yield Opened(lines, in_place) if rows is None else Opened(rows.lines(lines, first), in_place=False)


@contextmanager
def open_table(source: Source) -> Iterator[Table]:
    """Open a source that is a table.

    Raises:
        BadUsage: it is none, ends early, or is damaged; raised while it is read, too.
    """
    from sglang.batch.input import tables

    try:
        if source.path is not None and source.kind in ("parquet", "arrow"):
            yield tables.open_table(source.path, source.kind)
            return
        with _open(source) as file:
            if source.kind in ("csv", "tsv"):
                yield tables.open_table(_unpacked(file)[0], source.kind)
            elif file.seekable():
                yield tables.open_table(file, source.kind)
            else:
                with tempfile.TemporaryFile() as copy:
                    shutil.copyfileobj(file, copy)
                    copy.seek(0)
                    yield tables.open_table(copy, source.kind)
    except tables.TableUnreadable as error:
        raise BadUsage(f"--input {source.name}: is damaged, or not what it seems to be ({error})") from error


def _request_lines(source: Source, table: Table, rows: RowFormat, first: int) -> Iterator[bytes]:
    names = table.schema.names
    missing = [column for column in rows.columns if column not in names]
    if missing:
        raise BadUsage(f"--input {source.name}: has no column {missing[0]!r}; it has {', '.join(names)}")
    number = count(first + 1)
    for some in table.rows(rows.columns):
        for row in some.values(rows.columns):
            yield rows.line(row, next(number))


@contextmanager
def _open(source: Source) -> Iterator[IO[bytes]]:
    """Open a source for reading its bytes; what is wrong with them is told as bad usage."""
    if source.url is not None:
        from sglang.batch.input.remote import open_remote

        file = open_remote(source.url)
    else:
        file = sys.stdin.buffer if source.path is None else source.path.open("rb")
    try:
        yield file
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadUsage(f"--input {source.name}: is damaged or cut off ({error})") from error
    finally:
        if not source.standard_input:
            file.close()


def read_sources(sources: Sequence[Source]) -> Iterator[Line]:
    """Read the lines of several sources, one after the other; raises what `open_source` does."""
    first = 0
    for source in sources:
        with open_source(source, first=first) as opened:
            for line in read_lines(opened.lines):
                first += 1
                yield line


def _unpacked(file: IO[bytes]) -> tuple[IO[bytes], bool]:
    """Undo compression and encoding; returns the stream, and whether it is the file byte by byte."""
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
        return _buffered(_utf8_from(encoding), stream), False
    if b"\r" in head[:-1] and b"\n" not in head:
        return _buffered(lambda chunk: chunk.replace(b"\r", b"\n"), stream), in_place
    return stream, in_place


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

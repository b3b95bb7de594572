"""Tables are read a few rows at a time: Parquet, Arrow (Hugging Face datasets on the disk), CSV.

CSV goes through the standard library instead of pyarrow, whose reader guesses types from the first rows and
ends at a row with a cell too many; here a cell is the text that it is, and a bad row costs itself only.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from sglang.batch.input.rows import RowUnusable

ROWS = 256
"""Rows in memory at a time."""

ARROW_FILE = b"ARROW1"
"""First bytes of Arrow's file format; its stream format is the other one."""


class TableUnreadable(Exception):
    """A table is damaged, or is none; the message says how."""


class Rows(Protocol):
    """Some rows of a table, one behind the other."""

    def values(self, columns: Sequence[str]) -> Sequence[Mapping[str, Any] | RowUnusable]:
        """Read some columns of each row; or what is wrong with a row."""

    def arrow(self) -> pa.RecordBatch:
        """Give all columns of all rows."""


class Table(Protocol):
    """An open table.

    Attributes:
        schema: names and types of its columns.
    """

    schema: pa.Schema

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Rows]:
        """Read the table, once.

        Args:
            columns: that are needed; None for all.

        Raises:
            TableUnreadable: it is damaged.
        """


def open_table(file: IO[bytes] | Path, kind: str) -> Table:
    """Open a table.

    Args:
        file: a path where there is one, which is mapped instead of read; a stream is closed by the caller,
            and must be able to seek, but for CSV.
        kind: parquet, arrow, csv or tsv.

    Raises:
        TableUnreadable: it is none of that kind.
    """
    with _told():
        stream: Any = pa.memory_map(str(file)) if isinstance(file, Path) else file
        if kind == "parquet":
            return _Parquet(pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20))
        if kind == "arrow":
            whole = stream.read(len(ARROW_FILE)) == ARROW_FILE
            stream.seek(0)
            return _Arrow(pa.ipc.open_file(stream) if whole else pa.ipc.open_stream(stream))
        return _Csv(stream, "\t" if kind == "tsv" else ",")


class _ArrowRows:
    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch

    def values(self, columns: Sequence[str]) -> Sequence[Mapping[str, Any]]:
        with _told():
            found: list[Mapping[str, Any]] = self._batch.select(list(columns)).to_pylist()
            return found

    def arrow(self) -> pa.RecordBatch:
        return self._batch


class _Parquet:
    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file
        self.schema = file.schema_arrow

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Rows]:
        names = None if columns is None else list(columns)
        batches = self._file.iter_batches(ROWS, columns=names, use_threads=False)
        while (batch := _next(batches)) is not None:
            yield _ArrowRows(batch)


class _Arrow:
    def __init__(self, file: pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader) -> None:
        self._file = file
        self.schema = file.schema

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Rows]:
        batches = (
            iter(self._file)
            if isinstance(self._file, pa.ipc.RecordBatchStreamReader)
            else (self._file.get_batch(i) for i in range(self._file.num_record_batches))
        )
        while (batch := _next(batches)) is not None:
            for start in range(0, batch.num_rows, ROWS):
                yield _ArrowRows(batch.slice(start, ROWS))


class _CsvRows:
    def __init__(self, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._names = names
        self._rows = rows

    def values(self, columns: Sequence[str]) -> Sequence[Mapping[str, Any] | RowUnusable]:
        return [self._row(row) for row in self._rows]

    def _row(self, row: Sequence[str]) -> Mapping[str, Any] | RowUnusable:
        if len(row) > len(self._names):
            return RowUnusable(f"has {len(row)} cells, the header {len(self._names)}")
        return {name: cell or None for name, cell in zip(self._names, row, strict=False)}

    def arrow(self) -> pa.RecordBatch:
        columns = [
            pa.array([_cell(row, i) for row in self._rows], pa.string()) for i in range(len(self._names))
        ]
        return pa.record_batch(columns, names=list(self._names))


def _cell(row: Sequence[str], i: int) -> str | None:
    """Take a cell; an empty one is null, and bytes that are not UTF-8 become question marks."""
    return (row[i].encode(errors="replace").decode() or None) if i < len(row) else None


class _Csv:
    def __init__(self, file: IO[bytes], delimiter: str) -> None:
        csv.field_size_limit(sys.maxsize)  # of the whole process; nothing else in it reads CSV
        self._text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        self._reader = (row for row in csv.reader(self._text, delimiter=delimiter) if row)
        self._names = _next(self._reader)
        if self._names is None:
            raise TableUnreadable("has no header")
        self.schema = pa.schema([(name, pa.string()) for name in self._names])

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Rows]:
        while rows := self._some():
            yield _CsvRows(self._names, rows)

    def _some(self) -> list[list[str]]:
        with _told():
            return list(islice(self._reader, ROWS))


def _next(items: Iterator[Any]) -> Any:
    with _told():
        return next(items, None)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise TableUnreadable(str(error)) from error  # pyarrow's, for a file that is cut off
    except (pa.ArrowException, csv.Error, ValueError, OverflowError) as error:
        raise TableUnreadable(str(error)) from error

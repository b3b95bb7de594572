"""Records become a Parquet file: a row each, in the order of the input, the columns of tables first.

The input is read once more for that, and compared with the journal again: an answer never gets into another
row than its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from sglang.batch.input.lines import content_hash
from sglang.batch.input.source import LINES, Source, open_table
from sglang.batch.input.tables import ROWS
from sglang.batch.run.journal import Journal, LineRow, Log
from sglang.batch.run.record_log import RecordLog, Span
from sglang.batch.usage import BadUsage

ROW_GROUP = 10_000
"""Rows of a row group at most."""

GROUP_BYTES = 64 << 20
"""Bytes, as Arrow has them, after which a row group is written all the same."""

ANSWER = pa.schema(
    [
        ("custom_id", pa.string()),
        ("response_text", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("response", pa.string()),
    ]
)
"""Columns behind those of the input."""

Place = tuple[LineRow, Span | None]
"""A line, and where its record is in the log of answers."""


def check_parquet(sources: Sequence[Source]) -> None:
    """Check that the columns of the inputs fit into one Parquet file.

    Raises:
        BadUsage: they do not, or a table cannot be read.
    """
    columns = _input_columns(sources)
    try:
        pq.ParquetWriter(pa.BufferOutputStream(), output_schema(columns)).close()
    except pa.ArrowException as error:
        raise BadUsage(f"--output: the input has a column that Parquet cannot hold ({error})") from error


def write_parquet(path: Path, journal: Journal, log: RecordLog, sources: Sequence[Source]) -> None:
    """Write all records of a log; returns when they are on the disk.

    Raises:
        BadUsage: a table is not what it was when it was scanned, or cannot be read.
        OSError: the disk failed.
    """
    columns = _input_columns(sources)
    schema = output_schema(columns)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for group in _row_groups(_batches(journal, log, sources, columns, schema)):
                writer.write_table(pa.Table.from_batches(group, schema), row_group_size=ROW_GROUP)
        file.flush()
        os.fdatasync(file.fileno())


def _input_columns(sources: Sequence[Source]) -> pa.Schema:
    """Unite the columns of all inputs that are tables."""
    schemas = []
    for source in sources:
        if source.kind == LINES:
            continue
        with open_table(source) as table:
            names = table.schema.names
            if len(set(names)) < len(names):
                raise BadUsage(f"--input {source.name}: two columns have one name; rename one")
            schemas.append(table.schema.remove_metadata())
    try:
        united = pa.unify_schemas(schemas, promote_options="permissive") if schemas else pa.schema([])
    except pa.ArrowException as error:
        raise BadUsage(f"--output: the columns of the inputs do not fit into one table ({error})") from error
    return pa.schema([field.with_nullable(True) for field in united])


def output_schema(columns: pa.Schema, answer: pa.Schema = ANSWER) -> pa.Schema:
    """Put the answer's columns behind the input's, whose names give way where they are taken."""
    taken = {*answer.names, *columns.names}
    fields = []
    for field in columns:
        name = field.name
        while name in answer.names or (name != field.name and name in taken):
            name = f"input_{name}"
        taken.add(name)
        fields.append(field.with_name(name))
    return pa.schema([*fields, *answer])


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    group: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        if group and (rows + batch.num_rows > ROW_GROUP or size > GROUP_BYTES):
            yield group
            group, rows, size = [], 0, 0
        group.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
    if group:
        yield group


def _batches(
    journal: Journal, log: RecordLog, sources: Sequence[Source], columns: pa.Schema, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    for index, places in groupby(_places(journal), key=lambda place: place[0].input):
        for rows, spans in _pages(sources[index], places):
            inputs = [_column(rows, field, len(spans)) for field in columns]
            yield pa.record_batch([*inputs, *_answers(log, spans)], schema=schema)


def _places(journal: Journal) -> Iterator[Place]:
    """Read all lines in their order, each with its record."""
    spans = journal.spans(Log.ANSWERS, by_position=True)
    position, span = next(spans, (None, None))
    for line in journal.lines():
        if line.position == position:
            yield line, span
            position, span = next(spans, (None, None))
        else:
            yield line, None


def _pages(source: Source, places: Iterator[Place]) -> Iterator[tuple[pa.RecordBatch | None, list[Span]]]:
    """Read a table again, some rows at a time, with their records; rows without one are left out.

    Args:
        places: of the source's lines. Of what is no table, there are only records.
    """
    if source.kind == LINES or source.rows is None:
        while page := list(islice(places, ROWS)):
            yield None, [span for _, span in page if span is not None]
        return
    form = source.rows
    with open_table(source) as table:
        for rows in table.rows():
            batch = rows.arrow()
            page = list(islice(places, batch.num_rows))
            for row, (line, _) in zip(rows.values(form.columns), page, strict=False):
                if content_hash(form.line(row, line.position + 1)) != line.hash:
                    raise _changed(source, line)
            kept = [i for i, (_, span) in enumerate(page) if span is not None]
            yield batch.take(pa.array(kept, pa.int64())), [span for _, span in page if span is not None]
    if gone := next(places, None):
        raise _changed(source, gone[0])


def _changed(source: Source, line: LineRow) -> BadUsage:
    return BadUsage(
        f"{source.name}: row {line.number} has changed since the run began; put the input back and run the"
        " same command again: no answer is lost"
    )


def _column(rows: pa.RecordBatch | None, field: pa.Field, count: int) -> pa.Array:
    """Take an input column, or nulls where the input has none of that name."""
    if rows is None or field.name not in rows.schema.names:
        return pa.nulls(count, field.type)
    column = rows.column(field.name)
    return column if column.type == field.type else column.cast(field.type)


class _Record(msgspec.Struct):
    custom_id: str | None
    response: msgspec.Raw
    error: Any


_RECORD = msgspec.json.Decoder(_Record)


def _answers(log: RecordLog, spans: Sequence[Span]) -> list[pa.Array]:
    """Read records in the order of the disk, and give their columns in the order that is wanted."""
    rows = {span: answer_row(log.read(span)) for span in sorted(spans, key=lambda span: span.offset)}
    return [pa.array([rows[span][i] for span in spans], field.type) for i, field in enumerate(ANSWER)]


def answer_row(raw: bytes) -> tuple[str | int | None, ...]:
    """Read the columns of `ANSWER` from a record."""
    record = _RECORD.decode(raw)
    response = msgspec.json.decode(record.response)
    body = _at(response, "body")
    choice = _at(body, "choices", 0)
    message = _at(choice, "message")
    error = record.error or _at(body, "error")
    return (
        record.custom_id,
        _as(str, _at(choice, "text") if message is None else _at(message, "content")),
        _as(str, _at(choice, "finish_reason")),
        _as(int, _at(body, "usage", "prompt_tokens")),
        _as(int, _at(body, "usage", "completion_tokens")),
        _as(str, _at(error, "type" if record.error is None else "code")),
        _as(str, _at(error, "message")),
        None if response is None else bytes(record.response).decode(),
    )


def _at(value: Any, *path: str | int) -> Any:
    """Follow a path into JSON; None where it ends early."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _as(kind: type, value: Any) -> Any:
    return value if isinstance(value, kind) else None

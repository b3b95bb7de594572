"""A row of a table becomes a request: the flags that say how, and the line that comes out.

A row that gives no request (a column is null, say) becomes a line that says so, and gets an error record.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sglang.batch.endpoints import ENDPOINTS
from sglang.batch.input.lines import bare
from sglang.batch.usage import BadUsage

ROW_PROBLEM = "row_problem"
"""Field of a line that stands for a row that gives no request: why."""

SHOWN = 40
"""Characters of a template that are shown where it differs from an earlier run's."""

CHAT = "/v1/chat/completions"

FIELDS = {
    CHAT: "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
    "/v1/classify": "input",
    "/v1/responses": "input",
}
"""Endpoints that a template can make requests for, and the field of the body that it fills."""


class RowUnusable(Exception):
    """A row gives no request; the message says why."""


@dataclass(frozen=True)
class RowFormat:
    """How a row becomes a request.

    Attributes:
        template: pairs of text and the column that follows it, None behind the last text; empty where
            `messages` says it all.
        messages: column with a list of messages.
        id: column with the custom_id; without one, `row-N` with the row's number over all inputs, from 1.
        url: endpoint.
        params: fields of the body.
        flags: as the user gave them, a template by its start and a hash, for whoever compares two runs.
    """

    template: tuple[tuple[str, str | None], ...]
    messages: str | None
    id: str | None
    url: str
    params: Mapping[str, Any]
    flags: Mapping[str, Any]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read, each once."""
        named = [*(column for _, column in self.template), self.messages, self.id]
        return tuple(dict.fromkeys(column for column in named if column is not None))

    def line(self, row: Mapping[str, Any] | RowUnusable, number: int) -> bytes:
        """Write a row's line, newline included; a row that is a problem already stays one.

        Args:
            number: of the row over all inputs, from 1.
        """
        request: dict[str, Any] = {} if self.id is not None else {"custom_id": f"row-{number}"}
        request |= {"method": "POST", "url": self.url}
        try:
            if isinstance(row, RowUnusable):
                raise row
            if self.id is not None:
                request["custom_id"] = _text(row, self.id)
            return _encode(request | {"body": {**self._content(row), **self.params}})
        except RowUnusable as problem:
            request[ROW_PROBLEM] = str(problem)
        try:
            return _encode(request)
        except RowUnusable:  # the custom_id is why
            return _encode({ROW_PROBLEM: request[ROW_PROBLEM]})

    def lines(self, stream: Iterable[bytes], first: int) -> Iterator[bytes]:
        """Write the lines of a stream of JSON objects; blank lines and what is no object stay what they are.

        Args:
            first: rows before the stream.
        """
        number = first
        for raw in stream:
            text = bare(raw)
            number += bool(text)
            try:
                row = msgspec.json.decode(text) if text else None
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
                row = None
            yield self.line(row, number) if isinstance(row, dict) else text + b"\n"

    def _content(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if self.messages is not None:
            return {"messages": _messages(row, self.messages)}
        prompt = "".join(
            text + (_text(row, column) if column is not None else "") for text, column in self.template
        )
        field = FIELDS[self.url]
        return {field: [{"role": "user", "content": prompt}] if field == "messages" else prompt}


def add_row_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that make requests of rows."""
    group = parser.add_argument_group(
        "rows of tables", "Parquet, Arrow, CSV, and JSONL whose lines are no requests but rows"
    )
    group.add_argument(
        "--prompt-template",
        metavar="TEXT",
        help='prompt with columns in braces, "Summarise: {text}" ({{ and }} for braces), or @FILE',
    )
    group.add_argument(
        "--messages-column", metavar="NAME", help="column with a chat's messages, as a list or as JSON"
    )
    group.add_argument(
        "--id-column", metavar="NAME", help="column with the custom_id (default: row-1, row-2 ...)"
    )
    group.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="field of each request's body, as JSON or text: max_tokens=64, temperature=0, model=NAME",
    )
    group.add_argument("--url", metavar="URL", help=f"endpoint (default: {CHAT})")


def row_format(options: argparse.Namespace) -> RowFormat | None:
    """Check the flags of `add_row_arguments`; None where none is given.

    Raises:
        BadUsage: they do not go together, or are not what they should be.
    """
    given = {
        f"--{name.replace('_', '-')}": value
        for name in ("prompt_template", "messages_column", "id_column", "param", "url")
        if (value := getattr(options, name))
    }
    if not given:
        return None
    if (options.prompt_template is None) == (options.messages_column is None):
        raise BadUsage(f"{', '.join(given)}: give --prompt-template or --messages-column, one of them")
    url = options.url or CHAT
    endpoints = [name for name in FIELDS if name in ENDPOINTS]
    if url not in endpoints:
        raise BadUsage(f"--url {url}: choose one of {', '.join(endpoints)}")
    if options.messages_column is not None and url != CHAT:
        raise BadUsage(f"--messages-column: makes requests for {CHAT}, not for {url}")
    text = _template_text(options.prompt_template)
    params = dict(_param(text) for text in options.param)
    if FIELDS[url] in params:
        raise BadUsage(f"--param {FIELDS[url]}: comes from the rows")
    return RowFormat(
        template=_parse(text) if text is not None else (),
        messages=options.messages_column,
        id=options.id_column,
        url=url,
        params=params,
        flags=given | ({"--prompt-template": _brief(text)} if text is not None else {}),
    )


def _brief(text: str) -> str:
    """Tell a template from others, without all of it."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{text[:SHOWN]!r} ({len(text)} characters, hash {digest})"


def _template_text(value: str | None) -> str | None:
    if value is None or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadUsage(f"--prompt-template {value}: cannot be read ({error})") from error


def _parse(template: str) -> tuple[tuple[str, str | None], ...]:
    """Split a template at its columns.

    >>> _parse("Of {{{title}}}: {text}")
    (('Of {', None), ('', 'title'), ('}', None), (': ', 'text'))
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise BadUsage(f"--prompt-template: {error}; write {{{{ and }}}} for braces that are text") from None
    for _, column, spec, conversion in parts:
        if column == "" or spec or conversion:
            raise BadUsage("--prompt-template: {} takes the name of a column, without : and !")
    if all(column is None for _, column, _, _ in parts):
        raise BadUsage('--prompt-template: names no column; write one in braces, "Summarise: {text}"')
    return tuple((text, column) for text, column, _, _ in parts)


def _param(text: str) -> tuple[str, Any]:
    """Split `NAME=VALUE`.

    >>> _param("max_tokens=64"), _param("stop=###"), _param('stop=["a"]')
    (('max_tokens', 64), ('stop', '###'), ('stop', ['a']))
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise BadUsage(f"--param {text}: write NAME=VALUE")
    try:
        return name, msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeEncodeError, ValueError):
        return name, value


def _value(row: Mapping[str, Any], column: str) -> Any:
    value = row.get(column)
    if value is None:
        raise RowUnusable(f"column {column!r} is {'null' if column in row else 'missing'}")
    return value


def _text(row: Mapping[str, Any], column: str) -> str:
    """Write a value as text: numbers and dates as they are printed, lists and objects as JSON."""
    value = _value(row, column)
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        raise RowUnusable(f"column {column!r} holds bytes, not text")
    if isinstance(value, bool | list | dict):
        return _encode(value).decode().removesuffix("\n")
    return str(value)


def _messages(row: Mapping[str, Any], column: str) -> list[Any]:
    value = _value(row, column)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            pass
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise RowUnusable(f"column {column!r} is neither a list of messages nor one as JSON")
    return [_without_null(message) for message in value]


def _without_null(value: Any) -> Any:
    """Leave out fields that are null: in a table, every message has the fields of all."""
    if isinstance(value, dict):
        return {name: _without_null(field) for name, field in value.items() if field is not None}
    return [_without_null(item) for item in value] if isinstance(value, list) else value


def _encode(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value) + b"\n"
    except UnicodeEncodeError:
        raise RowUnusable("holds bytes that are not UTF-8") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RowUnusable(f"cannot be written as JSON ({error})") from None

"""Whether the lines of a file make a batch: what is wrong with them, as the API says it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang.batch.input.lines import read_lines
from sglang.batch.input.source import Source, open_source
from sglang.batch.records import BatchFailure, BatchRequest, parse_lines
from sglang.batch.usage import BadUsage

LONGEST_LINE = 32 << 20
"""Bytes of a line at most."""

PIECE = 1 << 20
"""Bytes that are looked at at a time."""

SHOWN = 100
"""Errors that are listed at most."""


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a file.

    Attributes:
        lines: those that are not blank.
        model: that its requests name; None if they name none.
        errors: why it makes no batch, as the API has them; none if it does.
    """

    lines: int
    model: str | None
    errors: list[dict[str, Any]]


def input_source(path: Path) -> Source:
    """Describe a batch's input, which holds lines whatever its first bytes say."""
    return Source("the input file", path)


def check_content(path: Path, *, endpoint: str, most: int) -> Content:
    """Read a file to its end, or to the last error that is listed.

    Args:
        endpoint: that all requests must name.
        most: lines at most.
    """
    errors: list[dict[str, Any]] = []
    lines, model = 0, None
    if (long := _long_line(path)) is not None:
        text = f"line {long} has more than {LONGEST_LINE:,} bytes"
        return Content(0, None, [_error("line_too_long", text, long)])
    try:
        for item in _items(path):
            lines += 1
            if lines > most:
                errors.append(_error("too_many_tasks", f"the file has more than {most:,} requests"))
            elif isinstance(item, BatchFailure):
                errors.append(_error(item.code, item.message, item.line, _param(item.code)))
            else:
                named = item.body.get("model")
                model = model if model is not None or not isinstance(named, str) else named
                errors += _mismatches(item, named, endpoint, model)
            if lines > most or len(errors) >= SHOWN:
                break
    except BadUsage as error:
        errors.append(_error("invalid_json_line", str(error)))
    if not lines and not errors:
        errors.append(_error("empty_file", "the file has no requests"))
    return Content(lines, model, errors[:SHOWN])


def _long_line(path: Path) -> int | None:
    """Find a line that is too long, before one is read into memory; None if there is none."""
    number, length = 1, 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            first, *others = piece.split(b"\n")
            for line in (length + len(first), *map(len, others)):
                if line > LONGEST_LINE:
                    return number
                number, length = number + 1, line
            number -= 1  # the last one goes on
    return None


def _items(path: Path) -> Iterator[BatchRequest | BatchFailure]:
    with open_source(input_source(path)) as opened:
        if not opened.in_place:
            # Compressed, a small file may hold more than a disk does.
            raise BadUsage("the file must be UTF-8 text with a JSON object per line, not compressed")
        yield from parse_lines(read_lines(opened.lines))


def _mismatches(
    request: BatchRequest, named: object, endpoint: str, model: str | None
) -> Iterator[dict[str, Any]]:
    line = request.line
    if request.url != endpoint:
        message = f"line {line}: url is {request.url}, the batch's endpoint is {endpoint}"
        yield _error("url_mismatch", message, line, "url")
    if request.body.get("priority") is not None:
        message = f"line {line}: priority is set, which a line of a batch cannot have; remove it"
        yield _error("priority_not_supported", message, line, "body.priority")
    if isinstance(named, str) and named != model:
        message = f"line {line}: names another model than the lines before it; a file has one"
        yield _error("model_mismatch", message, line, "body.model")


def _param(code: str) -> str | None:
    """Name the field that an error code is about."""
    names = ("custom_id", "method", "url", "body")
    return next((name for name in names if code.endswith(f"_{name}")), None)


def _error(code: str, message: str, line: int | None = None, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": param}

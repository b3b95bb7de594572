"""Lines of the OpenAI Batch format: input lines read, output lines written.

Input: `{"custom_id": str, "method": "POST", "url": str, "body": object}`, one per line.
Output: `{"id", "custom_id", "response": {"status_code", "request_id", "body"} | null, "error": object |
null}`, one per input line. An answer has status 200. A refusal by a request handler has its status (400 and
above) and the reason in `response.body.error`; `error` is null. What never had a status (a line that cannot
be read, a request that was aborted) has `"response": null` and `error`: `{"code", "message", "line"}`, with
the 1-based line number in the input, and `"file"` where there are several inputs.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from sglang.batch.endpoints import ENDPOINTS
from sglang.batch.input.lines import Line
from sglang.batch.input.rows import ROW_PROBLEM
from sglang.batch.input.seen import Seen

MAX_QUOTED = 80
"""Characters of a user's own value that an error message repeats."""


class RequestFailed(Exception):
    """What was asked of an engine raised in another process; the message names the exception."""


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A line that can be run; `line` is its number in the file, from 1."""

    line: int
    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BatchFailure:
    """A line that cannot be run, and why.

    Attributes:
        line: its number in the file, from 1.
        custom_id: None where the line has no usable one.
    """

    line: int
    custom_id: str | None
    code: str
    message: str

    @classmethod
    def internal(cls, request: BatchRequest, error: Exception) -> BatchFailure:
        """Say that whoever ran the request raised `error`."""
        words = str(error) if isinstance(error, RequestFailed) else f"{type(error).__name__}: {error}"
        return cls(request.line, request.custom_id, "internal_error", words)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answered request, as the engine counted them.

    Attributes:
        prompt: tokens of the prompt, `cached` ones included, whose KV was there already.
        completion: tokens of the answer, `reasoning` ones included, which a reasoning parser has set apart.
    """

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request handler replied.

    Attributes:
        status: as HTTP has it.
        body: the reply as JSON text.
        code, message: why the request failed; both are None where it was answered.
    """

    status: int
    body: bytes
    usage: Usage = Usage()
    code: str | None = None
    message: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the request was answered."""
        return self.code is None


def parse_line(line: int, raw: bytes) -> BatchRequest | BatchFailure:
    """Read one input line; nothing that the line contains raises.

    Args:
        line: number of the line in its file, from 1.
        raw: the line's bytes, with or without its newline.
    """
    try:
        record = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        return BatchFailure(line, None, "invalid_json_line", f"line {line} is not JSON: {error}")
    if not isinstance(record, dict):
        return BatchFailure(
            line, None, "invalid_json_line", f"line {line} is a JSON {_kind(record)}, not an object"
        )

    custom_id = record.get("custom_id")
    if (row_problem := record.get(ROW_PROBLEM)) is not None:
        known = custom_id if isinstance(custom_id, str) and custom_id else None
        return BatchFailure(line, known, "invalid_row", f"row {line}: {row_problem}")
    if not isinstance(custom_id, str) or not custom_id:
        problem = "is missing" if custom_id is None else "must be a string that is not empty"
        return BatchFailure(line, None, "missing_custom_id", f"line {line}: custom_id {problem}")

    def failure(code: str, message: str) -> BatchFailure:
        return BatchFailure(line, custom_id, code, f"line {line}: {message}")

    method, url, body = record.get("method"), record.get("url"), record.get("body")
    if method != "POST":
        return failure("invalid_method", f'method is {_quote(method)}; it must be "POST"')
    if not isinstance(url, str) or url not in ENDPOINTS:
        return failure("invalid_url", f"url is {_quote(url)}; choose one of {', '.join(ENDPOINTS)}")
    if not isinstance(body, dict):
        return failure("invalid_body", f"body is {_quote(body)}; it must be an object")
    for field, why in ENDPOINTS[url].refused.items():
        if body.get(field):
            return failure(f"{field}_not_supported", f"{field} is set and {why}; remove it")
    return BatchRequest(line, custom_id, url, body)


def parse_lines(lines: Iterable[Line]) -> Iterator[BatchRequest | BatchFailure]:
    """Read the lines of one batch, in bounded memory. A custom_id belongs to the first line that has it."""
    with Seen() as seen:
        for line in lines:
            item = parse_line(line.number, line.text)
            new = item.custom_id is None or seen.add(_id_hash(item.custom_id))
            yield item if new else duplicate(item)


def duplicate(request: BatchRequest | BatchFailure) -> BatchFailure:
    """Refuse a line whose custom_id an earlier line has."""
    message = f"line {request.line}: custom_id {_quote(request.custom_id)} is used by an earlier line"
    return BatchFailure(request.line, request.custom_id, "duplicate_custom_id", message)


def failure_record(failure: BatchFailure, *, file: str | None = None) -> bytes:
    """Write the output line, newline included, of a line that was not run.

    Args:
        file: name of its input; None where there is only one.
    """
    return _record(failure.custom_id, None, _error(failure.code, failure.message, failure.line, file))


def answer_record(request: BatchRequest, answer: Answer, *, file: str | None = None) -> bytes:
    """Write the output line, newline included, of a request that a handler replied to.

    A refusal with an HTTP status is a response with that status and no error; what has no such status is an
    error and no response.

    Args:
        file: name of the request's input; None where there is only one.
    """
    if not answer.ok and answer.status < 400:
        return _record(request.custom_id, None, _error(answer.code, answer.message, request.line, file))
    response = {
        "status_code": answer.status,
        "request_id": _request_id(),
        "body": msgspec.Raw(answer.body) if answer.ok else _refusal(answer),
    }
    return _record(request.custom_id, response, None)


def copied_record(record: bytes, raw: bytes, *, line: int, file: str | None = None) -> bytes:
    """Write a record once more, newline included, for a line with an equal request.

    Its ids are its own; status, body and error are those of the record.

    Args:
        record: of the other line, as `answer_record` or `failure_record` wrote it.
        raw: the line, whose custom_id the record gets.
        line: its number, from 1.
        file: name of its input; None where there is only one.
    """
    copy = _RECORD.decode(record)
    error = None if copy.error is None else _error(copy.error["code"], copy.error["message"], line, file)
    response = None if copy.response is None else {**copy.response, "request_id": _request_id()}
    return _record(custom_id(raw), response, error)


def _refusal(answer: Answer) -> dict[str, Any]:
    """Put the body of a refusal into the form of OpenAI's API, where the error is in a field of its own."""
    fields = msgspec.json.decode(answer.body)
    if isinstance(fields, dict) and isinstance(fields.get("error"), dict):
        return fields
    detail = {name: fields.get(name) for name in ("param", "code")} if isinstance(fields, dict) else {}
    return {"error": {"message": answer.message, "type": answer.code, **detail}}


def _request_id() -> str:
    return f"req_{secrets.token_hex(16)}"


def _record(custom_id: str | None, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    record = {
        "id": f"batch_req_{secrets.token_hex(16)}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(record) + b"\n"


def _error(code: str | None, message: str | None, line: int, file: str | None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line} | ({} if file is None else {"file": file})


def _kind(value: object) -> str:
    """Name a value's type as JSON calls it."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _quote(value: object) -> str:
    """Repeat a string of the user's, cut to MAX_QUOTED characters; of other values the type."""
    if value is None:
        return "missing"
    if not isinstance(value, str):
        return f"a JSON {_kind(value)}"
    return repr(value if len(value) <= MAX_QUOTED else value[:MAX_QUOTED] + "...")


class _OnlyCustomId(msgspec.Struct):
    """Of a line, what tells duplicates; the rest is skipped without being kept."""

    custom_id: Any = None


_ONLY_CUSTOM_ID = msgspec.json.Decoder(_OnlyCustomId)


class _Record(msgspec.Struct):
    """Of a record, what a copy keeps; the body stays as it is."""

    response: dict[str, msgspec.Raw] | None
    error: dict[str, Any] | None


_RECORD = msgspec.json.Decoder(_Record)


def custom_id(raw: bytes) -> str | None:
    """Read a line's custom_id; None where it has no usable one."""
    try:
        found = _ONLY_CUSTOM_ID.decode(raw).custom_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        return None
    return found if isinstance(found, str) and found else None


def custom_id_hash(raw: bytes) -> bytes | None:
    """Hash a line's custom_id, 16 bytes; None where it has no usable one."""
    found = custom_id(raw)
    return None if found is None else _id_hash(found)


def _id_hash(custom_id: str) -> bytes:
    return digest(custom_id.encode("utf-8", "surrogatepass"))


def digest(data: bytes) -> bytes:
    """Hash, 16 bytes of BLAKE2b: equal digests mean equal data."""
    return hashlib.blake2b(data, digest_size=16).digest()

"""Replies with an error, as OpenAI's clients read them."""

from __future__ import annotations

import sqlite3
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from sglang.batch.run.committer import is_full
from sglang.batch.serve.quotas import OverQuota
from sglang.batch.serve.store import NotFound


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
        status: as HTTP has it.
        param: the field that is wrong.
        headers: of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers


class ErrorDetail(BaseModel):
    """What went wrong, as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The body of a reply with an error."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": why}
    for status, why in (
        (400, "something in the request is wrong"),
        (401, "the API key is missing or unknown"),
        (404, "there is no such thing, or it is somebody else's"),
        (413, "more bytes than the service or the key may have"),
        (429, "more than the key may have now; Retry-After says when to ask again"),
        (507, "the service's disk is full"),
    )
}


def add_error_handlers(app: FastAPI) -> None:
    """Let an application answer what its routes raise."""
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(OverQuota, _over_quota)
    app.add_exception_handler(NotFound, _not_found)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OSError, _disk)
    app.add_exception_handler(sqlite3.Error, _disk)


async def _over_quota(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OverQuota)
    if error.retry_after is None:
        return error_reply(413, str(error), code="quota_exceeded")
    headers = {"Retry-After": str(error.retry_after)}
    return error_reply(429, str(error), None, "rate_limit_exceeded", headers)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return error_reply(error.status, str(error), error.param, error.code, error.headers)


async def _not_found(request: Request, error: Exception) -> JSONResponse:
    return error_reply(404, str(error))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:])
    return error_reply(400, f"{param or 'the body'}: {first['msg']}", param or None)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return error_reply(error.status_code, str(error.detail), None, None, dict(error.headers or {}))


async def _disk(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError | sqlite3.Error)
    if is_full(error, request.app.state.service.store.root):
        return error_reply(507, "the service's disk is full; nothing was changed")
    raise error


def error_reply(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Make a reply with an error."""
    return JSONResponse(error_body(status, message, param, code), status, headers)


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Make the body of a reply with an error."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    detail = ErrorDetail(message=message, type=kind, param=param, code=code)
    return ErrorReply(error=detail).model_dump()

"""The routes of online users: every endpoint of a batch, answered at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from sglang.batch.endpoints import ENDPOINTS
from sglang.batch.records import Answer, RequestFailed
from sglang.batch.run.engine.protocol import EngineDied
from sglang.batch.serve.caller import Owner, Running
from sglang.batch.serve.errors import ERRORS, ErrorReply, Refused, error_body
from sglang.batch.serve.online import STREAMS, Online
from sglang.batch.serve.quotas import check_tokens
from sglang.batch.serve.shared_engine import Busy

GIVEN_UP = 499
"""Status of a reply that nobody waits for any more."""

LATER = {"Retry-After": "5"}
"""Seconds after which an engine that starts, or has died, may be up."""

NO_RETRY = {"x-should-retry": "false"}
"""Tells OpenAI's clients not to send again what an engine may have died of."""

BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}

router = APIRouter(
    responses={
        **ERRORS,
        500: {"model": ErrorReply, "description": "the engine died, perhaps of this request"},
        502: {"model": ErrorReply, "description": "no server could be reached, or its reply made no sense"},
        503: {"model": ErrorReply, "description": "the engine is not up; Retry-After says when to ask again"},
    }
)


def _route(url: str) -> Callable[[Request, Running, Owner], Awaitable[Response]]:
    async def pass_through(request: Request, service: Running, owner: Owner) -> Response:
        """Answer a request at once, ahead of all batches."""
        if service.online is None:
            raise Refused(404, "this service passes no online requests through")
        live, used = service.batches.tallies(), service.tokens_online(owner)
        check_tokens(service.quotas, service.store, owner, live, used)
        body = _checked(url, await request.body())
        if body.get("stream") is True:
            return await _in_parts(service.online, request, owner, url, body)
        task = asyncio.ensure_future(service.online.run(owner, url, body, None))
        await _ended(request, task)
        return _reply(await _result(task))

    return pass_through


for _url in ENDPOINTS:
    router.add_api_route(
        _url, _route(_url), methods=["POST"], name=_url, openapi_extra=BODY, response_class=Response
    )


def _checked(url: str, raw: bytes) -> dict[str, Any]:
    """Read a body; what is in it is for the engine to check, but for what would have no effect here."""
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object")
    for field, why in ENDPOINTS[url].refused.items():
        if body.get(field) and (field != "stream" or url not in STREAMS):
            text = "replies of this endpoint come as a whole" if field == "stream" else why
            raise Refused(400, f"{field}: {text}", field)
    return {name: value for name, value in body.items() if name != "priority"}


async def _in_parts(online: Online, request: Request, owner: str, url: str, body: dict[str, Any]) -> Response:
    """Reply with server-sent events, or as a whole if the first never comes."""
    events: asyncio.Queue[bytes | None] = asyncio.Queue()
    task = asyncio.ensure_future(online.run(owner, url, body, events.put_nowait))
    task.add_done_callback(lambda done: events.put_nowait(None))
    first = asyncio.ensure_future(events.get())
    try:
        await _ended(request, first)
        if not first.done():
            task.cancel()
        event = first.result() if first.done() else None
    finally:
        first.cancel()
    if event is None:
        return _reply(await _result(task))
    return StreamingResponse(_stream(event, events, task), media_type="text/event-stream")


async def _stream(
    event: bytes | None, events: asyncio.Queue[bytes | None], task: asyncio.Task[Answer]
) -> AsyncIterator[bytes]:
    """Yield events until the request has ended; whoever stops listening ends it."""
    try:
        while event is not None:
            yield event
            event = await events.get()
        try:
            answer = await _result(task)
        except Refused as error:
            yield _event(error.status, str(error))
        else:
            if not answer.ok:
                yield _event(502, answer.message or "the reply is cut off")
    finally:
        task.cancel()


def _event(status: int, message: str) -> bytes:
    return b"data: " + msgspec.json.encode(error_body(status, message)) + b"\n\n"


async def _ended(request: Request, task: asyncio.Future[Any]) -> None:
    """Wait until something has ended, or the client is gone; then it is cancelled."""
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _result(task: asyncio.Task[Answer]) -> Answer:
    """Wait for an answer.

    Raises:
        Refused: there is none.
    """
    try:
        with contextlib.suppress(asyncio.CancelledError):
            return await task
        raise Refused(GIVEN_UP, "the client is gone")
    except Busy:
        raise Refused(503, "the engine is not up yet", headers=LATER) from None
    except EngineDied as error:
        if error.suspects:
            raise Refused(500, f"{error}, perhaps of this request", headers=NO_RETRY) from error
        raise Refused(503, str(error), headers=LATER) from error
    except RequestFailed as error:
        raise Refused(500, str(error), headers=NO_RETRY) from error


def _reply(answer: Answer) -> Response:
    if answer.ok:
        return Response(answer.body, answer.status, media_type="application/json")
    # What broke on the way has no status, and one that was aborted that of an answer.
    status = answer.status if answer.status >= 400 else 502
    raise Refused(status, answer.message or f"status {status}", code=answer.code)

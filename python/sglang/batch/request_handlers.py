"""SGLang's own request handlers: a line's body in, the reply that its server would give out.

Chat templates, sampling parameters, tool calls, response types and their errors are all upstream's:
a request body that works against `sglang serve` gives the same reply here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import msgspec

from sglang.batch.checks import Limits, Refused, check_body, check_fields, refuse_empty_prompts
from sglang.batch.endpoints import ENDPOINTS, openai
from sglang.batch.records import Answer, BatchRequest, Usage
from sglang.batch.reply_usage import ReplyUsage
from sglang.batch.upstream import RequestHandler, TemplateManager, TokenizerManager


class RequestHandlers:
    """Answers requests of every endpoint through one tokenizer.

    Args:
        tokenizer_manager: whatever stands behind it, an engine or none, decides what an answer is.
        template_manager: the model's chat and completion templates.
    """

    def __init__(self, tokenizer_manager: TokenizerManager, template_manager: TemplateManager) -> None:
        self._limits = Limits.of(tokenizer_manager)
        refuse_empty_prompts(tokenizer_manager)
        self._manager = tokenizer_manager
        self._templates = template_manager
        self._handlers: dict[str, RequestHandler] = {}
        self._request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
        name_requests(tokenizer_manager, self._request_id)

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run one request to its end.

        Args:
            request: a line of the batch.
            request_id: the engine's id for it (`rid`); one in the body is replaced, since a batch tells
                its requests apart by custom_id. Several prompts get `<request_id>_0` and so on.
        """
        return _answer(await self._reply(request, request_id))

    async def stream(
        self, request: BatchRequest, request_id: str, part: Callable[[bytes], Awaitable[None]]
    ) -> Answer:
        """Run one request, whose body asks for a stream, to its end.

        Args:
            part: takes server-sent events as they come; never called for a request that is refused.

        Returns:
            Status and, of a refusal, the body.
        """
        reply = await self._reply(request, request_id)
        parts = getattr(reply, "body_iterator", None)
        if parts is None:
            return _answer(reply)
        async for text in parts:
            await part(text if isinstance(text, bytes) else text.encode())
        return Answer(200, b"")

    async def _reply(self, request: BatchRequest, request_id: str) -> Any:
        """Let upstream's handler reply: a response of its own or of starlette's, or an `ErrorResponse`."""
        from pydantic import ValidationError

        endpoint = ENDPOINTS[request.url]
        model = getattr(openai("protocol"), endpoint.request)
        defaults = {"model": self._manager.served_model_name} if endpoint.needs_model else {}
        try:
            handler = self._handler(request.url)
        except _NotServed as error:
            return _bad_request(str(error))
        try:
            check_body(request.body)
            parsed = model.model_validate({**defaults, **request.body, **endpoint.sets, "rid": request_id})
            check_fields(dict(parsed), self._limits)
        except ValidationError as error:
            return handler.create_error_response(_explain(error))
        except Refused as error:
            return handler.create_error_response(str(error), param=error.field)
        except Exception as error:  # some models look into values before they know their types
            return handler.create_error_response(f"the body cannot be read: {error!r}")
        _carry_stop_iteration(asyncio.get_running_loop())
        self._request_id.set(request_id)
        return await getattr(handler, endpoint.method)(parsed, None)

    def _handler(self, url: str) -> RequestHandler:
        """Make a handler when the first line asks for it: some need a model of their kind, or a download."""
        if url not in self._handlers:
            endpoint = ENDPOINTS[url]
            problem = endpoint.problem(self._manager.model_config)
            if problem is not None:
                raise _NotServed(f"{url}: {problem}")
            try:
                self._handlers[url] = endpoint.handler(self._manager, self._templates)
            except Exception as error:
                raise _NotServed(f"{url}: SGLang cannot serve it here: {error}") from error
        return self._handlers[url]


class _NotServed(Exception):
    """The loaded model, or this SGLang, does not serve an endpoint."""


def _bad_request(message: str) -> Any:
    """Make upstream's reply to a bad request where there is no handler to make it."""
    return openai("protocol").ErrorResponse(message=message, type="BadRequestError", code=400)


def name_requests(manager: TokenizerManager, request_id: ContextVar[str | None]) -> None:
    """Let whatever a handler hands to a tokenizer carry the id of the line that it answers, if any.

    Some of upstream's handlers give no id, and some one id to several prompts, which upstream then refuses.
    """
    generate = manager.generate_request

    def generate_with_id(obj: Any, request: Any = None) -> AsyncIterator[Any]:
        name = request_id.get() or obj.rid
        prompts = obj.text if obj.text is not None else obj.input_ids
        several = isinstance(prompts, list) and bool(prompts) and not isinstance(prompts[0], int)
        # A request for text with several prompts is expanded from one id by upstream, one to embed is not.
        expand = several and hasattr(obj, "is_cross_encoder_request")
        obj.rid = [f"{name}_{i}" for i in range(len(prompts))] if expand else name
        return generate(obj, request)

    manager.generate_request = generate_with_id  # type: ignore[method-assign]


def _carry_stop_iteration(loop: asyncio.AbstractEventLoop) -> None:
    """Let threads of a loop raise StopIteration, as a ValueError, which handlers answer with a status of 400.

    No future takes StopIteration itself, and whoever awaits one would for ever. Image processors raise it
    where a prompt has more placeholders than there are images.
    """
    if getattr(loop, "carries_stop_iteration", False):
        return
    run_in_executor = loop.run_in_executor

    def run(executor: Any, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        return run_in_executor(executor, _without_stop_iteration, function, *arguments)

    setattr(loop, "run_in_executor", run)  # noqa: B010
    setattr(loop, "carries_stop_iteration", True)  # noqa: B010


def _without_stop_iteration(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except StopIteration as error:
        raise ValueError(
            "the request ran out of images, videos or recordings before its prompt did"
        ) from error


def _answer(reply: Any) -> Answer:
    """Read a reply: a response object, a list of them, upstream's `ErrorResponse`, a starlette response."""
    if isinstance(reply, list):
        body = b"[" + b",".join(part.model_dump_json(by_alias=True).encode() for part in reply) + b"]"
        return Answer(200, body, _sum(msgspec.json.decode(body, type=list[_Ranked])))
    if hasattr(reply, "status_code"):
        status, body = int(reply.status_code), bytes(reply.body)
    else:
        status, body = int(getattr(reply, "code", 200)), reply.model_dump_json(by_alias=True).encode()
    if status >= 400:
        error = msgspec.json.decode(body)
        error = error.get("error") or error
        return Answer(status, body, code=str(error.get("type")), message=str(error.get("message")))
    fields = msgspec.json.decode(body, type=_Reply)
    usage = fields.usage.usage() if fields.usage is not None else Usage()
    if fields.status == "failed" or any(choice.finish_reason == "abort" for choice in fields.choices):
        return Answer(status, body, usage, "aborted", "the engine aborted the request before its end")
    return Answer(status, body, usage)


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Reply(msgspec.Struct):
    """Of a reply, what a record of it needs; the rest is skipped."""

    usage: ReplyUsage | None = None
    choices: list[_Choice] = []
    status: str | None = None


class _RankedTokens(msgspec.Struct):
    prompt_tokens: int = 0
    cached_tokens: int = 0


class _Ranked(msgspec.Struct):
    meta_info: _RankedTokens | None = None


def _sum(documents: list[_Ranked]) -> Usage:
    """Add up what reranking has read; decoders that rank tell nothing."""
    counts = [document.meta_info for document in documents if document.meta_info is not None]
    return Usage(
        prompt=sum(count.prompt_tokens for count in counts),
        cached=sum(count.cached_tokens for count in counts),
    )


def _explain(error: Any) -> str:
    """Put a pydantic ValidationError on one line: where and what."""
    problems = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    return "; ".join(problems)

"""SGLang's own request handlers: a line's body in, the reply that its server would give out.

Chat templates, sampling parameters, tool calls, response types and their errors are all upstream's:
a request body that works against `sglang serve` gives the same reply here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from sglang.batch.checks import Limits, Refused, check_body, check_fields, refuse_empty_prompts
from sglang.batch.endpoints import ENDPOINTS, openai
from sglang.batch.records import Answer, BatchRequest, Usage
from sglang.batch.upstream import TemplateManager, TokenizerManager


class RequestHandlers:
    """Answers requests of every endpoint through one tokenizer.

    Args:
        tokenizer_manager: whatever stands behind it, an engine or none, decides what an answer is.
        template_manager: the model's chat and completion templates.
    """

    def __init__(self, tokenizer_manager: TokenizerManager, template_manager: TemplateManager) -> None:
        protocol = openai("protocol")
        self._limits = Limits.of(tokenizer_manager)
        refuse_empty_prompts(tokenizer_manager)
        self._handlers = {
            url: (
                getattr(protocol, endpoint.request),
                endpoint.handler(tokenizer_manager, template_manager),
            )
            for url, endpoint in ENDPOINTS.items()
        }

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run one request to its end.

        Args:
            request: a line of the batch.
            request_id: the engine's id for it (`rid`); one in the body is replaced, since a batch tells
                its requests apart by custom_id.
        """
        from pydantic import ValidationError

        model, handler = self._handlers[request.url]
        try:
            check_body(request.body)
            parsed = model.model_validate({**request.body, "rid": request_id})
            check_fields(dict(parsed), self._limits)
        except ValidationError as error:
            return _answer(handler.create_error_response(_explain(error)))
        except Refused as error:
            return _answer(handler.create_error_response(str(error), param=error.field))
        except Exception as error:  # some models look into values before they know their types
            return _answer(handler.create_error_response(f"the body cannot be read: {error!r}"))
        _carry_stop_iteration(asyncio.get_running_loop())
        return _answer(await handler.handle_request(parsed, None))


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
    """Read a reply: a response object, upstream's `ErrorResponse`, or a starlette response."""
    if hasattr(reply, "status_code"):
        status, body = int(reply.status_code), bytes(reply.body)
    else:
        status, body = int(getattr(reply, "code", 200)), reply.model_dump_json(by_alias=True).encode()
    if status >= 400:
        error = msgspec.json.decode(body)
        return Answer(status, body, code=str(error.get("type")), message=str(error.get("message")))
    usage = _usage(reply)
    if any(choice.finish_reason == "abort" for choice in getattr(reply, "choices", ())):
        return Answer(status, body, usage, "aborted", "the engine aborted the request before its end")
    return Answer(status, body, usage)


def _usage(reply: Any) -> Usage:
    counts = getattr(reply, "usage", None)
    if counts is None:
        return Usage()
    details = counts.prompt_tokens_details
    return Usage(
        prompt=counts.prompt_tokens,
        cached=(details.cached_tokens or 0) if details is not None else 0,
        completion=counts.completion_tokens or 0,
    )


def _explain(error: Any) -> str:
    """Put a pydantic ValidationError on one line: where and what."""
    problems = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    return "; ".join(problems)

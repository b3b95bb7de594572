"""The engine in this process: `sgl.Engine`, and the OpenAI request handlers of SGLang's own server on it.

Chat templates, sampling parameters, tool calls, response types and their errors are all upstream's:
a request body that works against `sglang serve` gives the same reply here.
"""

from __future__ import annotations

import signal
from typing import Any

from sglang.batch.records import Answer, BatchRequest, Usage


class EngineFailed(Exception):
    """The engine did not start, or one of its processes died."""


class BatchEngine:
    """Answers batch requests in this process.

    Args:
        server_args: upstream's `ServerArgs`, as parsed from the command line.

    Raises:
        EngineFailed: the engine did not start; the message is upstream's.
    """

    def __init__(self, server_args: Any) -> None:
        try:
            self._engine = _engine_class()(server_args=server_args)
            self._add_handlers()
        except Exception as error:
            raise EngineFailed(f"the engine did not start: {type(error).__name__}: {error}") from error

    def _add_handlers(self) -> None:
        from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
        from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion

        manager, templates = self._engine.tokenizer_manager, self._engine.template_manager
        self._handlers = {
            "/v1/chat/completions": (ChatCompletionRequest, manager.serving_chat_class(manager, templates)),
            "/v1/completions": (CompletionRequest, OpenAIServingCompletion(manager, templates)),
        }

    @property
    def loop(self) -> Any:
        """The event loop that the engine's sockets belong to."""
        return self._engine.loop

    @property
    def tokenizer_manager(self) -> Any:
        return self._engine.tokenizer_manager

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run one request to its end.

        Args:
            request: a line of the batch.
            request_id: the engine's id for it (`rid`); one in the body is replaced, since a batch tells
                its requests apart by custom_id.
        """
        from pydantic import ValidationError

        protocol, handler = self._handlers[request.url]
        try:
            parsed = protocol.model_validate({**request.body, "rid": request_id})
        except ValidationError as error:
            return _from_response(handler.create_error_response(_explain(error)))
        reply = await handler.handle_request(parsed, None)
        return _from_completion(reply) if hasattr(reply, "choices") else _from_response(reply)

    async def internal_state(self) -> list[dict[str, Any]]:
        """The schedulers' state, one dict per data-parallel rank."""
        states: list[dict[str, Any]] = await self._engine.tokenizer_manager.get_internal_state()
        return states

    def shutdown(self) -> None:
        """Stop every process of the engine; what is still running is dropped."""
        self._engine.shutdown()


def _from_completion(reply: Any) -> Answer:
    body = reply.model_dump_json(by_alias=True).encode()
    details = reply.usage.prompt_tokens_details
    usage = Usage(
        prompt=reply.usage.prompt_tokens,
        cached=(details.cached_tokens or 0) if details is not None else 0,
        completion=reply.usage.completion_tokens or 0,
    )
    if any(choice.finish_reason == "abort" for choice in reply.choices):
        return Answer(500, body, usage, "aborted", "the engine aborted the request before its end")
    return Answer(200, body, usage)


def _from_response(reply: Any) -> Answer:
    """An error that a handler replied with: a starlette response around upstream's `ErrorResponse`."""
    import msgspec

    if hasattr(reply, "model_dump_json"):
        status, body = int(reply.code), reply.model_dump_json(by_alias=True).encode()
    else:
        status, body = int(reply.status_code), bytes(reply.body)
    error = msgspec.json.decode(body)
    return Answer(status, body, code=str(error.get("type")), message=str(error.get("message")))


def _explain(error: Any) -> str:
    """A pydantic ValidationError in one line: where and what."""
    problems = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    return "; ".join(problems)


def _engine_class() -> Any:
    """`sgl.Engine` whose end we survive, through what upstream offers to subclasses."""
    from sglang.srt.entrypoints.engine import Engine

    class SurvivableEngine(Engine):
        run_scheduler_process_func = staticmethod(_run_scheduler)
        run_detokenizer_process_func = staticmethod(_run_detokenizer)

        @classmethod
        def _launch_scheduler_processes(cls, *args: Any, **kwargs: Any) -> Any:
            # A scheduler that cannot start sends SIGQUIT, upon which upstream's handler, installed just
            # before this, kills us. Without it the start fails with an exception, which can be reported.
            signal.signal(signal.SIGQUIT, lambda number, frame: None)
            return super()._launch_scheduler_processes(*args, **kwargs)

    return SurvivableEngine


def _run_scheduler(*args: Any, **kwargs: Any) -> Any:
    """Upstream's scheduler process, which leaves ctrl-C to us: a terminal sends it to the whole process
    group, the engine's processes would die of it, and the watchdog would kill us before the last word."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from sglang.srt.managers.scheduler import run_scheduler_process

    return run_scheduler_process(*args, **kwargs)


def _run_detokenizer(*args: Any, **kwargs: Any) -> Any:
    """Upstream's detokenizer process, likewise."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from sglang.srt.managers.detokenizer_manager import run_detokenizer_process

    return run_detokenizer_process(*args, **kwargs)

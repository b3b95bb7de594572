"""Replies of SGLang's request handlers become answers, on whatever endpoint."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from sglang.batch.endpoints import ENDPOINTS, Endpoint
from sglang.batch.records import Answer, BatchRequest, Usage, parse_line
from sglang.batch.request_handlers import RequestHandlers
from sglang.srt.entrypoints.openai import protocol
from sglang.srt.entrypoints.openai.protocol import (
    CompletionResponse,
    CompletionResponseChoice,
    EmbeddingResponse,
    ErrorResponse,
    PromptTokensDetails,
    UsageInfo,
)
from sglang.srt.entrypoints.openai.serving_base import OpenAIServingBase


class FakeHandler:
    """Replies with what it was given, to whatever it is asked."""

    def __init__(self, reply: Any) -> None:
        self.reply = reply
        self.asked: list[Any] = []

    async def handle_request(self, request: Any, raw_request: None) -> Any:
        self.asked.append(request)
        return self.reply

    def create_error_response(self, message: str, *, param: str | None = None) -> Any:
        return OpenAIServingBase.create_error_response(self, message, param=param)


def fake_tokenizer_manager() -> Any:
    """A tokenizer with 512 tokens that accepts everything."""
    return SimpleNamespace(
        model_config=SimpleNamespace(vocab_size=512),
        mm_processor=None,
        _validate_one_request=lambda request, token_ids: None,
    )


def answer(monkeypatch: pytest.MonkeyPatch, handler: FakeHandler, **body: Any) -> Answer:
    """What a line of the only endpoint there is comes to, whose handler is `handler`."""
    for url in list(ENDPOINTS):
        monkeypatch.delitem(ENDPOINTS, url)
    monkeypatch.setitem(ENDPOINTS, "/v1/echo", Endpoint("CompletionRequest", lambda *_: handler))
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/echo", "body": body}).encode()
    request = parse_line(1, line)
    assert isinstance(request, BatchRequest)
    handlers = RequestHandlers(fake_tokenizer_manager(), SimpleNamespace())
    return asyncio.run(handlers.answer(request, "id-of-the-engine"))


def completion(finish_reason: str) -> CompletionResponse:
    return CompletionResponse(
        id="x",
        model="m",
        choices=[CompletionResponseChoice(index=0, text="yes", finish_reason=finish_reason)],
        usage=UsageInfo(
            prompt_tokens=10,
            completion_tokens=2,
            total_tokens=12,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=4),
        ),
    )


def test_an_endpoint_is_one_entry_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    result = answer(monkeypatch, FakeHandler(completion("stop")), prompt="x")
    assert (result.status, result.ok) == (200, True)
    assert json.loads(result.body)["choices"][0]["text"] == "yes"
    assert result.usage == Usage(prompt=10, cached=4, completion=2)


def test_the_engines_id_replaces_the_bodys(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = FakeHandler(completion("stop"))
    answer(monkeypatch, handler, prompt="x", rid="mine")
    assert [request.rid for request in handler.asked] == ["id-of-the-engine"]


def test_a_value_of_the_wrong_type_is_refused_by_its_name_and_reaches_no_handler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler = FakeHandler(completion("stop"))
    result = answer(monkeypatch, handler, prompt="x", max_tokens="many")
    assert (result.status, result.code) == (400, "BadRequestError")
    assert "max_tokens" in str(result.message)
    assert handler.asked == []


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_refusal_keeps_upstreams_status_type_and_message(
    wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = FakeHandler(ErrorResponse(message="no such adapter", type="NotFound", code=404))
    if wrapped:
        handler.reply = OpenAIServingBase.create_error_response(handler, "no such adapter", "NotFound", 404)
    result = answer(monkeypatch, handler, prompt="x")
    assert (result.status, result.code, result.message) == (404, "NotFound", "no such adapter")
    assert json.loads(result.body)["code"] == 404


def test_an_answer_that_the_engine_aborted_is_a_failure_that_keeps_its_reply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = answer(monkeypatch, FakeHandler(completion("abort")), prompt="x")
    assert (result.status, result.code) == (200, "aborted")
    assert json.loads(result.body)["choices"][0]["finish_reason"] == "abort"
    assert result.usage.completion == 2


def test_a_reply_without_choices_or_usage_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    result = answer(monkeypatch, FakeHandler(EmbeddingResponse(data=[], model="m")), prompt="x")
    assert (result.status, result.ok, result.usage) == (200, True, Usage())


def test_a_value_that_no_engine_may_see_is_refused_by_its_field_and_reaches_no_handler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler = FakeHandler(completion("stop"))
    result = answer(monkeypatch, handler, prompt=[512])
    assert (result.status, result.code) == (400, "BadRequestError")
    assert result.message == "prompt: token ids must be from 0 to 511"
    assert json.loads(result.body)["param"] == "prompt"
    assert handler.asked == []


def test_a_value_that_the_models_own_code_trips_over_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class TrippingRequest:
        @staticmethod
        def model_validate(body: Any) -> Any:
            return body["response_format"].get("type")

    monkeypatch.setattr(protocol, "CompletionRequest", TrippingRequest)
    result = answer(monkeypatch, FakeHandler(completion("stop")), response_format="x")
    assert (result.status, result.code) == (400, "BadRequestError")
    assert "'str' object has no attribute 'get'" in str(result.message)


def test_stop_iteration_in_a_thread_is_an_error_and_no_endless_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    class ImageProcessor(FakeHandler):
        async def handle_request(self, request: Any, raw_request: None) -> Any:
            images: list[Any] = []
            await asyncio.wait_for(asyncio.to_thread(lambda: next(iter(images))), timeout=60)

    with pytest.raises(ValueError, match="ran out of images"):
        answer(monkeypatch, ImageProcessor(None), prompt="x")

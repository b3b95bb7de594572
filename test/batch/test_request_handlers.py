"""Replies of SGLang's request handlers become answers, on whatever endpoint."""

import asyncio
import dataclasses
import json
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest

from sglang.batch.endpoints import ENDPOINTS, Endpoint
from sglang.batch.records import Answer, BatchRequest, Usage, parse_line
from sglang.batch.request_handlers import RequestHandlers, name_requests
from sglang.srt.entrypoints.openai import protocol
from sglang.srt.entrypoints.openai.protocol import (
    CompletionResponse,
    CompletionResponseChoice,
    EmbeddingResponse,
    ErrorResponse,
    PromptTokensDetails,
    RerankResponse,
    ResponsesResponse,
    ScoringResponse,
    UsageInfo,
)
from sglang.srt.entrypoints.openai.serving_base import OpenAIServingBase
from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput


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


def manager(*, generates: bool = True, architecture: str = "LlamaForCausalLM") -> Any:
    """A tokenizer with 512 tokens, of a model of this kind, which accepts everything and runs nothing."""
    config = SimpleNamespace(architectures=[architecture])
    return SimpleNamespace(
        served_model_name="tiny",
        model_config=SimpleNamespace(is_generation=generates, hf_config=config, vocab_size=512),
        mm_processor=None,
        _validate_one_request=lambda request, token_ids: None,
        generate_request=lambda obj, request=None: obj.rid,
    )


def answer(monkeypatch: pytest.MonkeyPatch, handler: FakeHandler, **body: Any) -> Answer:
    """What a line of the only endpoint there is comes to, whose handler is `handler`."""
    for url in list(ENDPOINTS):
        monkeypatch.delitem(ENDPOINTS, url)
    monkeypatch.setitem(ENDPOINTS, "/v1/echo", Endpoint("CompletionRequest", lambda *_: handler))
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/echo", "body": body}).encode()
    request = parse_line(1, line)
    assert isinstance(request, BatchRequest)
    handlers = RequestHandlers(manager(), SimpleNamespace())
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


TOKENS = {"prompt_tokens": 3, "cached_tokens": 1}
WRITES = {"generates": True}
EMBEDS = {"generates": False, "architecture": "LlamaModel"}
SCORES = {"generates": False, "architecture": "LlamaForSequenceClassification"}


def thought() -> CompletionResponse:
    usage = UsageInfo(prompt_tokens=7, completion_tokens=5, total_tokens=12, reasoning_tokens=3)
    return completion("stop").model_copy(update={"usage": usage})


def responded(status: Any) -> ResponsesResponse:
    return ResponsesResponse(model="m", status=status, usage=completion("stop").usage)


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


@pytest.mark.parametrize(
    ("reply", "usage"),
    [
        (EmbeddingResponse(data=[], model="m", usage=UsageInfo(prompt_tokens=7)), Usage(prompt=7)),
        (ScoringResponse(scores=[[0.5]], model="m", usage=UsageInfo(prompt_tokens=7)), Usage(prompt=7)),
        (responded("completed"), Usage(prompt=10, cached=4, completion=2)),
        (thought(), Usage(prompt=7, completion=5, reasoning=3)),
        ([RerankResponse(score=1, index=i, meta_info=TOKENS) for i in range(2)], Usage(prompt=6, cached=2)),
        ([RerankResponse(score=1, index=0)], Usage()),
    ],
    ids=["embeddings", "score", "responses", "reasoning", "rerank", "rerank by a decoder"],
)
def test_every_kind_of_reply_tells_its_tokens(
    reply: Any, usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = answer(monkeypatch, FakeHandler(reply), prompt="x")
    assert (result.status, result.ok, result.usage) == (200, True, usage)
    if isinstance(reply, list):
        assert [document["index"] for document in json.loads(result.body)] == list(range(len(reply)))


def test_a_reply_that_is_json_already_is_read_as_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    body = ScoringResponse(scores=[[0.5]], model="m", usage=UsageInfo(prompt_tokens=7)).model_dump_json()
    reply = SimpleNamespace(status_code=200, body=body.encode())
    assert answer(monkeypatch, FakeHandler(reply), prompt="x").usage == Usage(prompt=7)


def test_a_response_that_failed_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    result = answer(monkeypatch, FakeHandler(responded("failed")), prompt="x")
    assert (result.status, result.code) == (200, "aborted")


def test_an_error_in_a_field_of_its_own_keeps_type_and_message(monkeypatch: pytest.MonkeyPatch) -> None:
    error = {"error": {"message": "no such model", "type": "invalid_request_error", "code": 404}}
    reply = SimpleNamespace(status_code=404, body=json.dumps(error).encode())
    result = answer(monkeypatch, FakeHandler(reply), prompt="x")
    assert (result.status, result.code, result.message) == (404, "invalid_request_error", "no such model")


@pytest.mark.parametrize(
    ("url", "model", "problem"),
    [
        ("/v1/chat/completions", EMBEDS, "run without --is-embedding"),
        ("/v1/completions", EMBEDS, "run without --is-embedding"),
        ("/v1/responses", EMBEDS, "run without --is-embedding"),
        ("/v1/embeddings", WRITES, "any model with --is-embedding"),
        ("/v1/classify", WRITES, "any model with --is-embedding"),
        ("/v1/classify", EMBEDS, "LlamaModel has no head that scores"),
        ("/v1/score", EMBEDS, "LlamaModel has no head that scores"),
        ("/v1/rerank", EMBEDS, "LlamaModel has no head that scores"),
    ],
)
def test_a_model_of_another_kind_is_refused_with_the_remedy(
    url: str, model: dict[str, Any], problem: str
) -> None:
    handlers = RequestHandlers(manager(**model), SimpleNamespace())
    result = asyncio.run(handlers.answer(BatchRequest(1, "a", url, {}), "id"))
    assert (result.status, result.code) == (400, "BadRequestError")
    assert problem in str(result.message)


@pytest.mark.parametrize(
    ("url", "model"),
    [(url, WRITES) for url in ("/v1/chat/completions", "/v1/completions", "/v1/score", "/v1/rerank")]
    + [("/v1/embeddings", EMBEDS)]
    + [(url, SCORES) for url in ("/v1/embeddings", "/v1/classify", "/v1/score", "/v1/rerank")],
)
def test_a_model_of_the_right_kind_is_not_refused(url: str, model: dict[str, Any]) -> None:
    assert ENDPOINTS[url].problem(manager(**model).model_config) is None


def test_a_handler_that_cannot_be_made_is_a_refusal_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ImportError("no vocabulary")

    monkeypatch.setitem(ENDPOINTS, "/v1/echo", Endpoint("CompletionRequest", broken))
    handlers = RequestHandlers(manager(), SimpleNamespace())
    result = asyncio.run(handlers.answer(BatchRequest(1, "a", "/v1/echo", {"prompt": "x"}), "id"))
    assert (result.status, result.message) == (400, "/v1/echo: SGLang cannot serve it here: no vocabulary")


@pytest.mark.parametrize(
    ("asked", "ids"),
    [
        (GenerateReqInput(text="x"), "id"),
        (GenerateReqInput(text=["x", "y"]), "id"),
        (EmbeddingReqInput(text="x"), "id"),
        (EmbeddingReqInput(input_ids=[1, 2]), "id"),
        (EmbeddingReqInput(text=["x", "y"]), ["id_0", "id_1"]),
        (EmbeddingReqInput(input_ids=[[1], [2]]), ["id_0", "id_1"]),
        (EmbeddingReqInput(text=[["x", "y"]], is_cross_encoder_request=True), ["id_0"]),
    ],
)
def test_whatever_a_handler_asks_of_the_engine_has_the_lines_id(asked: Any, ids: str | list[str]) -> None:
    named: ContextVar[str | None] = ContextVar("named", default="id")
    tokenizer = manager()
    name_requests(tokenizer, named)
    assert tokenizer.generate_request(asked) == ids
    asked.normalize_batch_and_arguments()


def test_a_response_is_of_the_model_there_is_and_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = FakeHandler(completion("stop"))
    monkeypatch.setitem(
        ENDPOINTS,
        "/v1/responses",
        dataclasses.replace(ENDPOINTS["/v1/responses"], handler=lambda *_: handler, method="handle_request"),
    )
    handlers = RequestHandlers(manager(), SimpleNamespace())
    body = {"input": "x", "store": True}
    asyncio.run(handlers.answer(BatchRequest(1, "a", "/v1/responses", body), "id"))
    assert [(request.store, request.model) for request in handler.asked] == [(False, "tiny")]

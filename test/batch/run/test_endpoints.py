"""Every endpoint through a real engine under blend, and values that would end it, among good requests.

One run for each kind of model, random and tiny, since starting an engine costs 25 seconds of CPU time.
"""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from stand_ins import line

from checkpoints import CONTEXT, VOCABULARY, make_classifier, make_llama, make_qwen2_vl

START_SECONDS = 800  # for an engine on a busy machine; pytest allows 900

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
EMBEDDINGS, CLASSIFY, SCORE, RERANK = "/v1/embeddings", "/v1/classify", "/v1/score", "/v1/rerank"

HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["positive", "negative"]}},
    "required": ["mood"],
    "additionalProperties": False,
}
FUNCTION = {"name": "classify", "parameters": SCHEMA, "strict": True}


class Run(NamedTuple):
    """What a run has left: records by custom_id, and its report."""

    records: dict[str, dict[str, Any]]
    report: dict[str, Any]

    def body(self, custom_id: str) -> Any:
        """The reply to an answered line."""
        response = self.records[custom_id]["response"]
        assert response["status_code"] == 200, response
        return response["body"]

    def refusal(self, custom_id: str) -> tuple[str, str]:
        """Type and message of a line's refusal."""
        response = self.records[custom_id]["response"]
        assert response["status_code"] == 400, response
        error = response["body"]["error"]
        return error["type"], error["message"]


def run(folder: Path, model: Path, lines: dict[str, tuple[str, dict[str, Any]]], *flags: str) -> Run:
    """Answer lines (by custom_id: URL and body) as a user would."""
    (folder / "in.jsonl").write_bytes(
        b"".join(line(name, url=url, body=body) for name, (url, body) in lines.items())
    )
    files = ["-i", "in.jsonl", "-o", "out.jsonl", "--errors", "-", "--report", "report.json"]
    server = ["--dtype", "float32", "--random-seed", "1", "--max-total-tokens", "4096"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sglang.batch.cli",
            "run",
            *files,
            "--model-path",
            str(model),
            *server,
            *flags,
        ],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        timeout=START_SECONDS,
    )
    assert done.returncode in (0, 1), done.stderr
    records = [json.loads(raw) for raw in (folder / "out.jsonl").read_bytes().splitlines()]
    assert sorted(record["custom_id"] for record in records) == sorted(lines)
    return Run(
        {record["custom_id"]: record for record in records}, json.loads((folder / "report.json").read_text())
    )


def chat(**body: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"messages": HELLO, "max_tokens": 4, "temperature": 0, **body}


def complete(**body: Any) -> tuple[str, dict[str, Any]]:
    return COMPLETIONS, {"prompt": "Hi", "max_tokens": 4, "temperature": 0, **body}


def respond(**body: Any) -> tuple[str, dict[str, Any]]:
    return RESPONSES, {"input": "hello", "max_output_tokens": 8, "temperature": 0, **body}


LETHAL = {
    "prompt-out-of-vocabulary": complete(prompt=[100000]),
    "prompt-negative-id": complete(prompt=[-1]),
    "prompt-vocabulary-size": complete(prompt=[VOCABULARY]),
    "prompt-id-2-to-63": complete(prompt=[9223372036854775808]),
    "top_k-int33": chat(top_k=4294967296),
    "top_logprobs-1000": chat(logprobs=True, top_logprobs=1000),
    "logprobs-above-vocabulary": complete(logprobs=1000000),
    "stop_token_ids-negative-min-tokens": chat(stop_token_ids=[-1], min_tokens=2),
    "n-two-billion": chat(n=2147483647),
    "chat_template_kwargs-tokenize": chat(chat_template_kwargs={"tokenize": True}),
    "chat_template_kwargs-messages": chat(chat_template_kwargs={"messages": []}),
    "stop_regex-unclosed": chat(stop_regex="(?P"),
    "stop_regex-backslash": chat(stop_regex="\\"),
}
"""Requests that would end, hang or exhaust an engine, named by the field that is wrong."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("writes")
    schema = {"name": "mood", "schema": SCHEMA}
    lines = {
        "schema": chat(max_tokens=256, response_format={"type": "json_schema", "json_schema": schema}),
        "tool": chat(
            max_tokens=256, tools=[{"type": "function", "function": FUNCTION}], tool_choice="required"
        ),
        "logprobs": chat(logprobs=True, top_logprobs=2),
        "three": chat(n=3, temperature=1),
        "seed": chat(seed=5, temperature=1, max_tokens=16, ignore_eos=True),
        "seed-of-text": chat(seed="five"),
        "picture": chat(messages=[{"role": "user", "content": [picture_part(png(0))]}]),
        "two-prompts": (COMPLETIONS, {"prompt": ["hello", "a request"], "max_tokens": 3, "logprobs": 1}),
        "response": respond(),
        "response-stored": respond(store=True),
        "response-schema": respond(max_output_tokens=256, text={"format": {"type": "json_schema", **schema}}),
        "response-tool": respond(
            max_output_tokens=256, tools=[{"type": "function", **FUNCTION}], tool_choice="required"
        ),
        "response-logprobs": respond(include=["message.output_text.logprobs"], top_logprobs=2),
        "response-background": respond(background=True),
        "response-of-nothing": (RESPONSES, {"input": "hello", "max_output_tokens": "many"}),
        "score": (
            SCORE,
            {"query": "hello", "items": ["a", "b"], "label_token_ids": [5, 6], "apply_softmax": True},
        ),
        "score-without-labels": (SCORE, {"query": "hello", "items": ["a"]}),
        "embedding": (EMBEDDINGS, {"input": "hello"}),
        "class": (CLASSIFY, {"input": "hello"}),
        "rerank": (RERANK, {"query": "hello", "documents": ["a"]}),
        "of-4096-n-300": chat(max_tokens=CONTEXT, n=300),
        **LETHAL,
    }
    return run(folder, make_llama(folder / "model"), lines, "--tool-call-parser", "pythonic")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("embeds")
    lines = {
        "one": (EMBEDDINGS, {"input": "hello"}),
        "two": (EMBEDDINGS, {"input": ["hello", "a request"]}),
        "tokens": (EMBEDDINGS, {"input": [[20, 21, 22], [23, 24]], "encoding_format": "base64"}),
        "nothing": (EMBEDDINGS, {"input": ""}),
        **{
            f"shared-{i}": (EMBEDDINGS, {"input": f"{'Many requests share this. ' * 20}{i}"})
            for i in range(8)
        },
        "chat": chat(),
        "text": (COMPLETIONS, {"prompt": "hello"}),
        "response": respond(),
        "class": (CLASSIFY, {"input": "hello"}),
        "score": (SCORE, {"query": "hello", "items": ["a"]}),
        "rerank": (RERANK, {"query": "hello", "documents": ["a"]}),
    }
    return run(folder, make_llama(folder / "model"), lines, "--is-embedding")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("scores")
    lines = {
        "class": (CLASSIFY, {"input": ["hello", "a request"]}),
        "class-alone": (CLASSIFY, {"input": "a request"}),
        "score": (SCORE, {"query": "hello", "items": ["a", "b"], "apply_softmax": True}),
        "rerank": (RERANK, {"query": "hello", "documents": ["a request", "an answer", "text"], "top_n": 2}),
        "rerank-one": (RERANK, {"query": "hello", "documents": ["a request"], "return_documents": False}),
        "rerank-nothing": (RERANK, {"query": "hello", "documents": []}),
        "chat": chat(),
    }
    return run(folder, make_classifier(folder / "model"), lines)


def test_response_format_binds_the_answer(written: Run) -> None:
    content = written.body("schema")["choices"][0]["message"]["content"]
    assert json.loads(content)["mood"] in ("positive", "negative")
    (message,) = written.body("response-schema")["output"]
    assert json.loads(message["content"][0]["text"])["mood"] in ("positive", "negative")


def test_a_tool_is_called(written: Run) -> None:
    choice = written.body("tool")["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]["function"]
    assert call["name"] == "classify"
    assert json.loads(call["arguments"])["mood"] in ("positive", "negative")
    call = next(item for item in written.body("response-tool")["output"] if item["type"] == "function_call")
    assert json.loads(call["arguments"])["mood"] in ("positive", "negative")


def test_logprobs_come_with_each_token(written: Run) -> None:
    tokens = written.body("logprobs")["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 4
    assert all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 2 for token in tokens)
    (message,) = written.body("response-logprobs")["output"]
    assert all(len(token["top_logprobs"]) == 2 for token in message["content"][0]["logprobs"])


def test_n_answers_and_several_prompts_are_one_record(written: Run) -> None:
    assert len(written.body("three")["choices"]) == 3
    assert written.body("three")["usage"]["completion_tokens"] == 12
    assert [len(choice["logprobs"]["tokens"]) for choice in written.body("two-prompts")["choices"]] == [3, 3]


def test_seeds_are_taken(written: Run) -> None:
    # What they decide shows with --enable-deterministic-inference only, which upstream has for GPUs.
    assert written.body("seed")["usage"]["completion_tokens"] == 16
    assert "seed" in written.refusal("seed-of-text")[1]


def test_responses_are_answered_at_once_and_not_stored(written: Run) -> None:
    for name in ("response", "response-stored"):
        body = written.body(name)
        assert (body["object"], body["store"]) == ("response", False)
        assert body["usage"]["output_tokens"] > 0
    assert written.records["response-background"]["error"]["code"] == "background_not_supported"
    assert "max_output_tokens" in written.refusal("response-of-nothing")[1]


def test_a_decoder_scores_labels(written: Run) -> None:
    body = written.body("score")
    assert [sum(row) for row in body["scores"]] == pytest.approx([1, 1])
    assert body["usage"]["completion_tokens"] == 0
    assert "label_token_ids" in written.refusal("score-without-labels")[1]


@pytest.mark.parametrize("name", ["embedding", "class", "rerank", "picture"])
def test_what_a_decoder_cannot_do_is_refused_and_the_run_goes_on(name: str, written: Run) -> None:
    assert written.refusal(name)[0] == "BadRequestError"


@pytest.mark.parametrize("name", LETHAL)
def test_a_lethal_value_is_refused_by_its_field(name: str, written: Run) -> None:
    error = written.records[name]["response"]["body"]["error"]
    kind, message = written.refusal(name)
    assert kind in ("BadRequestError", "BadRequest")
    assert error["param"] == name.partition("-")[0]
    assert message.startswith(f"{error['param']}: ")


def test_more_tokens_than_the_context_has_are_refused(written: Run) -> None:
    assert written.refusal("of-4096-n-300")[0] in ("BadRequestError", "BadRequest")


def test_every_prompt_of_a_line_is_embedded(embedded: Run) -> None:
    (one,), (same, other) = embedded.body("one")["data"], embedded.body("two")["data"]
    assert math.hypot(*one["embedding"]) == pytest.approx(1, abs=1e-3)
    assert same["embedding"] == pytest.approx(one["embedding"], abs=1e-3)
    assert other["embedding"] != pytest.approx(one["embedding"], abs=1e-2)
    raw = [base64.b64decode(item["embedding"]) for item in embedded.body("tokens")["data"]]
    assert [math.hypot(*struct.unpack(f"<{len(part) // 4}f", part)) for part in raw] == pytest.approx([1, 1])
    assert embedded.refusal("nothing")[1] == "Input cannot be empty"


def test_embeddings_run_under_blend_and_their_tokens_are_counted(embedded: Run) -> None:
    report = embedded.report
    assert report["policy"] == "blend"
    answered = [name for name, record in embedded.records.items() if record["response"]["status_code"] == 200]
    assert report["prompt_tokens"] == sum(embedded.body(name)["usage"]["prompt_tokens"] for name in answered)
    assert report["completion_tokens"] == 0


@pytest.mark.parametrize("name", ["chat", "text", "response", "class", "score", "rerank"])
def test_what_an_embedding_model_cannot_do_is_refused_and_the_run_goes_on(name: str, embedded: Run) -> None:
    assert embedded.refusal(name)[0] == "BadRequestError"


def test_a_classifier_tells_classes_with_their_probabilities(scored: Run) -> None:
    data = scored.body("class")["data"]
    assert [item["num_classes"] for item in data] == [3, 3]
    for item in data:
        assert sum(item["probs"]) == pytest.approx(1)
        assert item["label"] == f"LABEL_{int(np.argmax(item['probs']))}"
    (alone,) = scored.body("class-alone")["data"]
    assert alone["probs"] == pytest.approx(data[1]["probs"], abs=1e-3)


def test_a_classifier_scores_and_ranks(scored: Run) -> None:
    assert [sum(row) for row in scored.body("score")["scores"]] == pytest.approx([1, 1])
    ranked = scored.body("rerank")
    assert len(ranked) == 2
    assert ranked[0]["score"] >= ranked[1]["score"]
    assert all(item["document"] == ["a request", "an answer", "text"][item["index"]] for item in ranked)
    assert "document" not in scored.body("rerank-one")[0]
    assert scored.refusal("rerank-nothing")[1] == "Documents cannot be empty"
    assert scored.refusal("chat")[0] == "BadRequestError"


def png(seed: int) -> bytes:
    """A picture of noise, 112 x 112: 16 tokens."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(112, 112, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def data_url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def picture_part(picture: bytes | str) -> dict[str, Any]:
    url = picture if isinstance(picture, str) else data_url(picture)
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, list[str]]]:
    """A run with pictures, and what was asked of a server on 127.0.0.1."""
    folder = tmp_path_factory.mktemp("sees")
    (folder / "allowed").mkdir()
    (folder / "allowed" / "a.png").write_bytes(png(0))
    (folder / "secret.png").write_bytes(png(1))
    (folder / "allowed" / "link.png").symlink_to("../secret.png")
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            away = self.path == "/away"
            self.send_response(302 if away else 200)
            if away:
                self.send_header("Location", f"http://localhost:{port}/a.png")
            self.end_headers()
            self.wfile.write(b"" if away else png(0))

        def log_message(self, *args: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = {
            "data": data_url(png(0)),
            "local": str(folder / "allowed" / "a.png"),
            "file": f"file://{folder}/allowed/a.png",
            "remote": f"http://127.0.0.1:{port}/a.png",
            "outside": str(folder / "secret.png"),
            "link": str(folder / "allowed" / "link.png"),
            "redirected": f"http://127.0.0.1:{port}/away",
            "other-host": f"http://localhost:{port}/a.png",
            "broken": data_url(b"no picture"),
        }
        lines = {
            name: chat(messages=[{"role": "user", "content": [picture_part(url)]}])
            for name, url in urls.items()
        }
        part = {"type": "input_image", "image_url": data_url(png(0))}
        lines["response"] = respond(input=[{"role": "user", "content": [part]}])
        lines["text"] = chat(messages=[{"role": "user", "content": ""}])
        image = picture_part(png(0))
        for kind in ("image", "video"):
            parts = [image, {"type": "text", "text": f"<|{kind}_pad|> <|vision_start|>"}]
            lines[f"literal-{kind}"] = chat(messages=[{"role": "user", "content": parts}])
        lines["literal-alone"] = chat(messages=[{"role": "user", "content": "<|image_pad|>"}])
        flags = ("--allow-local-media", "allowed", "--allow-remote-media", f"127.0.0.1:{port}")
        yield run(folder, make_qwen2_vl(folder / "model"), lines, *flags), asked
        server.shutdown()


def test_pictures_are_seen_wherever_they_may_come_from(seen: tuple[Run, list[str]]) -> None:
    result, _ = seen
    without = result.body("text")["usage"]["prompt_tokens"]
    for name in ("data", "local", "file", "remote"):
        assert result.body(name)["usage"]["prompt_tokens"] == without + 16 + 2, name
    assert result.body("response")["usage"]["input_tokens"] >= without + 16


def test_pictures_out_of_the_allowed_set_are_refused_and_not_asked_for(seen: tuple[Run, list[str]]) -> None:
    result, asked = seen
    for name in ("outside", "link", "redirected", "other-host"):
        code, message = result.refusal(name)
        assert code == "media_not_allowed"
        assert message.startswith("messages.0.content.0.image_url.url: ")
    assert sorted(asked) == ["/a.png", "/away"]


def test_a_picture_that_is_none_is_refused(seen: tuple[Run, list[str]]) -> None:
    assert seen[0].refusal("broken")


def test_a_text_that_passes_for_a_picture_is_refused_beside_one(seen: tuple[Run, list[str]]) -> None:
    result, _ = seen
    for kind in ("image", "video"):
        error = result.records[f"literal-{kind}"]["response"]["body"]["error"]
        assert error["param"] == "messages"
        assert f"<|{kind}_pad|>" in result.refusal(f"literal-{kind}")[1]
    assert result.body("literal-alone")["usage"]["completion_tokens"] > 0

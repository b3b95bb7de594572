"""Values that would end an engine, in a file with good requests, run by a real one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from stand_ins import line

from checkpoints import make_llama, make_qwen2_vl

SECONDS = 800  # for an engine on a busy machine


def run(folder: Path, model: Path, lines: list[bytes]) -> dict[str, dict[str, Any]]:
    """The responses of a run by custom_id; one line at least is refused."""
    (folder / "in.jsonl").write_bytes(b"".join(lines))
    files = ["-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"), "--errors", "-"]
    server = ["--model-path", str(model), "--dtype", "float32", "--max-total-tokens", "8192"]
    command = [sys.executable, "-m", "sglang.batch.cli", "run", *files, *server]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=SECONDS)
    assert done.returncode == 1, done.stderr
    records = [json.loads(raw) for raw in (folder / "out.jsonl").read_bytes().splitlines()]
    assert len(records) == len(lines)
    assert {record["error"] for record in records} == {None}
    return {record["custom_id"]: record["response"] for record in records}


def completion(custom_id: str, **body: Any) -> bytes:
    return line(custom_id, body={"prompt": "Hi", "max_tokens": 6, "temperature": 0, **body})


def chat(custom_id: str, **body: Any) -> bytes:
    messages = [{"role": "user", "content": "Name a colour."}]
    body = {"messages": messages, "max_tokens": 6, "temperature": 0, **body}
    return line(custom_id, url="/v1/chat/completions", body=body)


POISON = [
    completion("prompt-out-of-vocabulary", prompt=[100000]),
    chat("good-0"),
    completion("prompt-negative-id", prompt=[-1]),
    completion("prompt-vocabulary-size", prompt=[49152]),
    chat("top_k-int33", top_k=4294967296),
    chat("good-1"),
    chat("top_logprobs-1000", logprobs=True, top_logprobs=1000),
    completion("logprobs-above-vocabulary", logprobs=1000000),
    chat("stop_token_ids-negative-min-tokens", stop_token_ids=[-1], min_tokens=2),
    chat("good-2"),
    chat("n-two-billion", n=2147483647),
    chat("of-4096-n-300", max_tokens=4096, n=300),
    completion("prompt-id-2-to-63", prompt=[9223372036854775808]),
    chat("good-3"),
    chat("chat_template_kwargs-tokenize", chat_template_kwargs={"tokenize": True}),
    chat("chat_template_kwargs-messages", chat_template_kwargs={"messages": []}),
    chat("stop_regex-unclosed", stop_regex="(?P"),
    chat("good-4"),
    chat("stop_regex-backslash", stop_regex="\\"),
]
"""Named by the field that is wrong; the one of 4096 tokens is longer than the model's context."""


def test_an_engine_answers_the_good_lines_among_lethal_ones(tmp_path: Path) -> None:
    responses = run(tmp_path, make_llama(tmp_path / "model"), POISON)
    assert len(responses) == 19
    for custom_id, response in responses.items():
        if custom_id.startswith("good"):
            assert response["status_code"] == 200
            assert response["body"]["usage"]["completion_tokens"] == 6
        else:
            error = response["body"]["error"]
            assert (response["status_code"], error["type"]) in [(400, "BadRequestError"), (400, "BadRequest")]
            if not custom_id.startswith("of-4096"):
                assert error["param"] == custom_id.partition("-")[0]
                assert error["message"].startswith(f"{error['param']}: ")


IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAADgAAAA4CAIAAAAn5KxJAAAAWUlEQVR4nO3OUQkAIQBAMTWI/aMYywr38UAO"
    "tgSbZ+/xB+t14CvRmmhNtCZaE62J1kRrojXRmmhNtCZaE62J1kRrojXRmmhNtCZaE62J1kRrojXRmmhNtHYByF0BdOurBQ4AAAAASUVORK5C"
    "YII="
)


def test_a_text_that_passes_for_an_image_ends_as_an_error(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": IMAGE}}
    literal = {"type": "text", "text": "<|image_pad|> <|vision_start|>"}
    lines = [
        chat("literal", messages=[{"role": "user", "content": [literal, image]}]),
        chat(
            "literal-video",
            messages=[{"role": "user", "content": [image, literal | {"text": "<|video_pad|>"}]}],
        ),
        chat("about-no-image", messages=[{"role": "user", "content": [literal]}]),
        chat("about-an-image", messages=[{"role": "user", "content": [image]}]),
    ]
    responses = run(tmp_path, make_qwen2_vl(tmp_path / "model"), lines)
    statuses = {custom_id: response["status_code"] for custom_id, response in responses.items()}
    assert statuses == {"literal": 400, "literal-video": 400, "about-no-image": 200, "about-an-image": 200}
    for custom_id, placeholder in (("literal", "<|image_pad|>"), ("literal-video", "<|video_pad|>")):
        error = responses[custom_id]["body"]["error"]
        assert error["param"] == "messages"
        assert placeholder in error["message"]

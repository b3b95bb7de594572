"""Requests as the planner sees them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import make_tokenizer
from sglang.batch.run.remote.prompt import NO_LIMIT, Prompt, four_bytes, load_tokenizer, read_prompt
from sglang.batch.usage import BadUsage

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def read(url: str, **body: Any) -> Prompt:
    return read_prompt(url, body, four_bytes)


def shared(one: Prompt, other: Prompt) -> int:
    """Tokens that two prompts begin with in common."""
    length = min(len(one.tokens), len(other.tokens))
    different = np.flatnonzero(one.tokens[:length] != other.tokens[:length])
    return int(different[0]) if len(different) else length


def chat(*texts: str, **more: Any) -> Prompt:
    return read(CHAT, messages=[{"role": "user", "content": text} for text in texts], **more)


def test_messages_share_what_they_begin_with() -> None:
    document = "a document of some length. " * 20
    assert shared(chat(document, "one question"), chat(document, "another")) > len(document) // 4
    assert shared(chat("x" + document), chat("y" + document)) < 3


def test_tools_come_before_messages() -> None:
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    assert shared(chat("one", tools=tools), chat("other", tools=tools)) > 10


def test_a_picture_counts_as_a_few_tokens() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    content = [{"type": "text", "text": "what is this?"}, picture]
    prompt = read(CHAT, messages=[{"role": "user", "content": content}])
    assert len(prompt.tokens) < 20


def test_token_ids_are_taken_as_they_are() -> None:
    assert read(COMPLETIONS, prompt=[5, 6, 7]).tokens.tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("url", "body", "max_new", "known"),
    [
        (CHAT, {}, NO_LIMIT, 0),
        (COMPLETIONS, {}, 16, 0),
        (CHAT, {"max_tokens": 7}, 7, 0),
        (CHAT, {"max_tokens": 7, "max_completion_tokens": 9}, 9, 0),
        (CHAT, {"max_tokens": 7, "ignore_eos": True}, 7, 7),
        (CHAT, {"max_tokens": 7, "min_tokens": 7}, 7, 7),
        (CHAT, {"max_tokens": 1}, 1, 1),
        ("/v1/embeddings", {"input": "a text"}, 1, 1),
    ],
)
def test_lengths_are_what_a_request_allows(url: str, body: dict[str, Any], max_new: int, known: int) -> None:
    prompt = read(url, **body)
    assert (prompt.max_new, prompt.known) == (max_new, known)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": None},
        {"prompt": []},
        {"prompt": [1, "two", [3], None]},
        {"prompt": 5, "max_tokens": "many"},
        {"prompt": "\ud800", "max_tokens": -1},
        {"prompt": [-1, 2**70]},
        {"messages": "text"},
        {"messages": [None, 3, {"content": {"a": 1}}, {"role": 5, "content": [None, 2]}]},
        {"max_tokens": 2**80, "messages": []},
        {"max_tokens": True},
    ],
)
def test_no_body_is_too_strange(body: dict[str, Any]) -> None:
    for url in (CHAT, COMPLETIONS):
        prompt = read(url, **body)
        assert prompt.tokens.dtype == np.int32
        assert len(prompt.tokens) >= 1
        assert prompt.max_new >= 1


def test_a_tokenizer_is_a_folder_a_file_or_refused(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    text = "Classify the sentence as positive or negative."
    by_folder, by_file = load_tokenizer(str(tmp_path)), load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert by_folder(text).tolist() == by_file(text).tolist() == make_tokenizer().encode(text)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadUsage, match="tokenizer.json"):
        load_tokenizer(str(tmp_path / "empty"))

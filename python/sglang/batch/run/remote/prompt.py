"""What the planner needs to know of a request: the beginning of its prompt, and how long its answer may be.

Prompts are not rendered: the order needs their common beginnings, which the text of the messages has as well.
Without a tokenizer four bytes stand for a token, which is what one is long on average in English.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from sglang.batch.usage import BadUsage

Tokenize = Callable[[str], NDArray[np.int32]]

NO_LIMIT = 1 << 20
"""Output tokens that a request without a limit may take."""

COMPLETIONS_LIMIT = 16
"""`max_tokens` of /v1/completions where it is missing, as OpenAI's API has it."""


class Prompt(NamedTuple):
    """A request as the planner sees it.

    Attributes:
        tokens: int32 (n,), token ids or what stands for them.
        max_new: output tokens at most, 1 or more.
        known: output tokens if the request fixes them, else 0.
    """

    tokens: NDArray[np.int32]
    max_new: int
    known: int


def read_prompt(url: str, body: dict[str, Any], tokenize: Tokenize) -> Prompt:
    """Read what the planner needs; nothing that a body contains raises.

    >>> prompt = read_prompt("/v1/completions", {"prompt": "one two three", "max_tokens": 9}, four_bytes)
    >>> len(prompt.tokens), prompt.max_new, prompt.known
    (4, 9, 0)
    """
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        tokens = (np.array([token & 0x7FFFFFFF for token in prompt], np.int64)).astype(np.int32)
    else:
        tokens = tokenize("\n".join(_texts(body)))
    if "completions" not in url:
        return Prompt(tokens, 1, 1)  # embeddings and scores: nothing is decoded
    limits = (body.get(name) for name in ("max_completion_tokens", "max_tokens"))
    limit = next((limit for limit in limits if type(limit) is int and limit > 0), 0)
    if not limit:
        return Prompt(tokens, NO_LIMIT if "chat" in url else COMPLETIONS_LIMIT, 0)
    limit = min(limit, NO_LIMIT)
    least = body.get("min_tokens")
    runs_on = body.get("ignore_eos") is True or (type(least) is int and least >= limit)
    return Prompt(tokens, limit, limit if runs_on or limit == 1 else 0)


def _texts(body: dict[str, Any]) -> Iterator[str]:
    """The texts of a prompt in the order in which a model sees them."""
    if body.get("messages") is not None:
        if body.get("tools"):
            yield _json(body["tools"])
        messages = body["messages"]
        for message in messages if isinstance(messages, list) else [messages]:
            content = message.get("content") if isinstance(message, dict) else message
            yield str(message.get("role")) if isinstance(message, dict) else ""
            yield from _parts(content)
        return
    for name in ("prompt", "input", "query", "text_1", "instructions"):
        if body.get(name) is not None:
            yield from _parts(body[name])


def _parts(content: object) -> Iterator[str]:
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            yield part["text"]
        elif part is not None:
            # A picture is not as long as its data.
            yield hashlib.blake2b(_json(part).encode(), digest_size=16).hexdigest()


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def four_bytes(text: str) -> NDArray[np.int32]:
    """Let four bytes of UTF-8 stand for a token.

    >>> one, other = four_bytes("a common beginning, one"), four_bytes("a common beginning, two")
    >>> int((one == other).sum()), len(one)
    (5, 6)
    """
    raw = text.encode("utf-8", "surrogatepass")
    words = np.frombuffer((raw or b"\0") + b"\0" * (-len(raw or b"\0") % 4), "<u4")
    return (words & np.uint32(0x7FFFFFFF)).astype(np.int32)


def load_tokenizer(name: str | None) -> Tokenize:
    """Load the tokenizer that orders requests; `four_bytes` for none.

    Args:
        name: a folder with a tokenizer.json, such a file, or a name on the Hugging Face hub.

    Raises:
        BadUsage: there is none.
    """
    if name is None:
        return four_bytes
    from tokenizers import Tokenizer

    path = Path(name) / "tokenizer.json" if Path(name).is_dir() else Path(name)
    try:
        if Path(name).exists():
            tokenizer = Tokenizer.from_file(str(path))
        else:
            tokenizer = Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises nothing narrower
        raise BadUsage(f"--tokenizer-path {name}: no tokenizer.json can be read there ({error})") from error

    def tokenize(text: str) -> NDArray[np.int32]:
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    return tokenize

"""What is refused before a request reaches an engine: values that would end, hang or exhaust its processes.

A server of SGLang that meets such a value dies, and everybody's requests with it; a batch must not. Each
refusal names the field and its limit. What is merely wrong (a temperature of -1) is left to upstream, which
answers it with a status of 400 itself.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from sglang.batch.upstream import TokenizerManager

NESTING = 100
"""Objects and arrays inside each other, at most; parsers of schemas and templates recurse into them."""

INT32, INT64 = 2**31 - 1, 2**63 - 1
"""Largest integers of the scheduler's tensors, and of its messages."""

FLOAT32 = 3.4e38
"""What a logit can be at most; one beyond is infinite, and then there is no distribution to sample."""

CHOICES = 4096
"""Answers that one line may ask for: `n`, times its prompts. Each is a request of its own, of about 30 KB."""

TOKEN_IDS = ("prompt", "input", "input_ids", "query", "items", "stop_token_ids", "label_token_ids")
"""Fields that may have token ids, on whatever endpoint."""

RENDERER_ARGUMENTS = frozenset(
    ("self", "conversation", "conversations", "messages", "tools", "add_generation_prompt", "tokenize")
    + ("return_dict",)
)
"""Names that a chat template's keyword arguments cannot have, since the renderer passes its own."""


class Refused(Exception):
    """A request that no engine may see.

    Attributes:
        field: where in the body the value stands, such as `messages` or `logit_bias`.
    """

    def __init__(self, field: str, limit: str) -> None:
        super().__init__(f"{field}: {limit}")
        self.field = field


@dataclass(frozen=True, slots=True)
class Limits:
    """What one model's engine can take.

    Attributes:
        vocabulary: token ids are from 0 to `vocabulary` - 1; what no model exceeds where it is not known.
        placeholders: texts that stand for an image, a video or a recording in a rendered prompt; empty where
            the model only reads text.
    """

    vocabulary: int = INT32
    placeholders: tuple[str, ...] = ()

    @classmethod
    def of(cls, tokenizer_manager: TokenizerManager) -> Limits:
        """Read the limits of the model behind a tokenizer."""
        tokens = getattr(tokenizer_manager.mm_processor, "mm_tokens", None)
        ids = (getattr(tokens, f"{medium}_token_id", None) for medium in ("image", "video", "audio"))
        known = [one for one in ids if isinstance(one, int)]
        placeholders = tokenizer_manager.tokenizer.convert_ids_to_tokens(known) if known else []
        return cls(tokenizer_manager.model_config.vocab_size, tuple(text for text in placeholders if text))


def check_body(body: Mapping[str, Any]) -> None:
    """Check what holds of every value of a body, wherever it stands; called before anything parses it.

    >>> check_body({"top_k": 2**70})
    Traceback (most recent call last):
        ...
    sglang.batch.checks.Refused: top_k: integers must be from -2**63 to 2**63 - 1

    Raises:
        Refused: a number is beyond 64 bits or not finite, or values are nested too deeply.
    """
    for field, value in body.items():
        level, depth = [value], 0
        while level:
            inner: list[Any] = []
            for one in level:
                if isinstance(one, dict):
                    inner.extend(one.values())
                elif isinstance(one, list):
                    inner.extend(_bounds(one) or one)
                else:
                    _check_number(field, one)
            level, depth = inner, depth + 1
            if level and depth > NESTING:
                raise Refused(field, f"must not be nested more than {NESTING} levels deep")


def check_fields(fields: Mapping[str, Any], limits: Limits) -> None:
    """Check the fields of a request, of whatever endpoint.

    Args:
        fields: as parsed, or as in the body: a value of a type that its field cannot have is not looked at,
            since the parser refuses it.

    Raises:
        Refused: a value is beyond what the engine can take.
    """
    for field in TOKEN_IDS:
        _check_tokens(field, fields.get(field), limits)
    for field, value in fields.items():
        _check_number(field, value)  # parsing makes numbers of texts, "nan" among them
    for field, most in (
        ("top_k", INT32),
        ("min_tokens", INT32),
        ("logprobs", limits.vocabulary),
        ("top_logprobs", limits.vocabulary),
    ):
        value = fields.get(field)
        if isinstance(value, int) and value > most:
            raise Refused(field, f"must be at most {most}")
    _check_choices(fields)
    _check_bias(fields.get("logit_bias"), limits)
    _check_regexes(fields.get("stop_regex"))
    for field in ("json_schema", "ebnf", "regex"):
        _check_nesting_of_text(field, fields.get(field))
    _check_template_arguments(fields.get("chat_template_kwargs"))
    if limits.placeholders:
        _check_placeholders(fields.get("messages") or (), limits)


def refuse_empty_prompts(tokenizer_manager: TokenizerManager) -> None:
    """Let a tokenizer refuse prompts of no tokens, which only it can tell: what a template renders to
    nothing, or an empty text for a tokenizer that begins none. A prefill of nothing else ends the scheduler.
    """
    validate = tokenizer_manager._validate_one_request

    def validate_one_request(request: Any, token_ids: Any) -> None:
        if token_ids is not None and len(token_ids) == 0 and getattr(request, "input_embeds", None) is None:
            raise ValueError("prompt: must have at least one token")
        validate(request, token_ids)

    tokenizer_manager._validate_one_request = validate_one_request  # type: ignore[method-assign]


def _check_number(field: str, value: Any) -> None:
    if isinstance(value, int) and not -INT64 - 1 <= value <= INT64:
        raise Refused(field, "integers must be from -2**63 to 2**63 - 1")
    if isinstance(value, float) and not isfinite(value):
        raise Refused(field, "numbers must be finite")


def _bounds(values: list[Any]) -> list[int] | None:
    """Take the smallest and the largest of integers only, which stand for all of them: a prompt has many."""
    return [min(values), max(values)] if set(map(type, values)) == {int} else None


def _check_tokens(field: str, value: Any, limits: Limits) -> None:
    """Check a list of token ids, or of lists of them; texts are none."""
    for one in (_bounds(value) or value) if isinstance(value, list) else ():
        if isinstance(one, list):
            _check_tokens(field, one, limits)
        elif isinstance(one, int) and not 0 <= one < limits.vocabulary:
            raise Refused(field, f"token ids must be from 0 to {limits.vocabulary - 1}")


def _check_choices(fields: Mapping[str, Any]) -> None:
    n, prompt = fields.get("n"), fields.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    if (n if isinstance(n, int) else 1) * prompts > CHOICES:
        raise Refused("n", f"a line may ask for {CHOICES} answers at most, n times its prompts")


def _check_bias(bias: Any, limits: Limits) -> None:
    for token, value in bias.items() if isinstance(bias, dict) else ():
        if isinstance(value, int | float) and not -FLOAT32 <= value <= FLOAT32:
            raise Refused("logit_bias", f"values must be from {-FLOAT32} to {FLOAT32}")
        if not (token.isascii() and token.isdigit() and int(token[:20]) < limits.vocabulary):
            raise Refused("logit_bias", f"keys must be token ids from 0 to {limits.vocabulary - 1}")


def _check_regexes(patterns: Any) -> None:
    for pattern in patterns if isinstance(patterns, list) else [patterns]:
        if not isinstance(pattern, str):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise Refused("stop_regex", f"must be a regular expression of Python's: {error}") from error


def _check_nesting_of_text(field: str, text: Any) -> None:
    """Count brackets of a text that a recursive parser will read, those in strings of it included."""
    depth = 0
    for bracket in re.finditer(r"[][(){}]", text if isinstance(text, str) else ""):
        depth += 1 if bracket[0] in "([{" else -1
        if depth > NESTING:
            raise Refused(field, f"must not be nested more than {NESTING} levels deep")


def _check_template_arguments(arguments: Any) -> None:
    taken = RENDERER_ARGUMENTS & set(arguments if isinstance(arguments, dict) else ())
    if taken:
        names = ", ".join(sorted(RENDERER_ARGUMENTS))
        raise Refused("chat_template_kwargs", f"must not have {min(taken)!r}; the renderer sets {names}")


def _check_placeholders(messages: Iterable[Any], limits: Limits) -> None:
    """Refuse texts that pass for media of the same request: the processor would look for media that are not
    there."""
    parts = [part for message in messages for part in _parts(message)]
    if all(isinstance(part, str) for part in parts):
        return
    for part in parts:
        for placeholder in limits.placeholders:
            if isinstance(part, str) and placeholder in part:
                raise Refused(
                    "messages", f"text must not contain {placeholder}, which stands for media, beside media"
                )


def _parts(message: Any) -> Iterator[Any]:
    """Yield a parsed message's texts as strings and its media as they are."""
    content = getattr(message, "content", None)
    for part in [content] if isinstance(content, str) else content or ():
        text = part if isinstance(part, str) else getattr(part, "text", None)
        yield part if text is None else text

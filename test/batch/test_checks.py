"""Values that would end, hang or exhaust an engine are refused before it sees them, by field and limit."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.batch import checks
from sglang.batch.checks import Limits, Refused, check_body, check_fields
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest

VOCABULARY = 49152
MODEL = Limits(VOCABULARY)
MESSAGES = [{"role": "user", "content": "Name a colour."}]


def refusal(body: dict[str, Any], limits: Limits = MODEL) -> Refused | None:
    """What a line of this body is refused for before it is run, if anything."""
    parser = ChatCompletionRequest if "messages" in body else CompletionRequest
    try:
        check_body(body)
        check_fields(dict(parser.model_validate(body)), limits)
    except Refused as error:
        return error
    return None


LETHAL: list[tuple[str, dict[str, Any], str, str]] = [
    ("prompt-out-of-vocabulary", {"prompt": [100000]}, "prompt", "49151"),
    ("prompt-negative-id", {"prompt": [-1]}, "prompt", "from 0"),
    ("prompt-vocabulary-size", {"prompt": [49152]}, "prompt", "49151"),
    ("prompt-in-a-list", {"prompt": [[1], [2, 49152]]}, "prompt", "49151"),
    ("prompt-id-2-to-63", {"prompt": [9223372036854775808]}, "prompt", "2**63"),
    ("input-ids", {"messages": MESSAGES, "input_ids": [49152]}, "input_ids", "49151"),
    ("top-k-int33", {"prompt": "x", "top_k": 4294967296}, "top_k", "2147483647"),
    ("top-k-int33-as-text", {"prompt": "x", "top_k": "4294967296"}, "top_k", "2147483647"),
    ("logprobs-above-vocabulary", {"prompt": "x", "logprobs": 1000000}, "logprobs", "49152"),
    ("top-logprobs", {"messages": MESSAGES, "top_logprobs": 49153}, "top_logprobs", "49152"),
    ("stop-token-id", {"prompt": "x", "stop_token_ids": [-1], "min_tokens": 2}, "stop_token_ids", "49151"),
    ("stop-token-id-as-text", {"prompt": "x", "stop_token_ids": ["-1"]}, "stop_token_ids", "49151"),
    ("n-two-billion", {"messages": MESSAGES, "n": 2147483647}, "n", "4096"),
    ("n-times-prompts", {"prompt": ["x"] * 100, "n": 41}, "n", "4096"),
    ("bias-key", {"prompt": "x", "logit_bias": {"49152": 1}}, "logit_bias", "49151"),
    ("bias-key-negative", {"prompt": "x", "logit_bias": {"-1": 1}}, "logit_bias", "49151"),
    ("bias-key-of-other-digits", {"prompt": "x", "logit_bias": {"²": 1}}, "logit_bias", "49151"),
    ("bias-key-endless", {"prompt": "x", "logit_bias": {"9" * 5000: 1}}, "logit_bias", "49151"),
    ("bias-infinite", {"prompt": "x", "logit_bias": {"1": 1e39}}, "logit_bias", "3.4e+38"),
    ("seed-beyond-64-bits", {"prompt": "x", "seed": 2**63}, "seed", "2**63"),
    ("unknown-field", {"prompt": "x", "new_field": {"a": [-(2**63) - 1]}}, "new_field", "2**63"),
    ("temperature-nan", {"prompt": "x", "temperature": "nan"}, "temperature", "finite"),
    ("min-tokens", {"messages": MESSAGES, "min_tokens": 2**31}, "min_tokens", "2147483647"),
    ("template-tokenize", {"messages": MESSAGES, "chat_template_kwargs": {"tokenize": True}},
     "chat_template_kwargs", "tokenize"),
    ("template-messages", {"messages": MESSAGES, "chat_template_kwargs": {"messages": []}},
     "chat_template_kwargs", "messages"),
    ("stop-regex-unclosed", {"messages": MESSAGES, "stop_regex": "(?P"}, "stop_regex", "position 3"),
    ("stop-regex-backslash", {"messages": MESSAGES, "stop_regex": "\\"}, "stop_regex", "position 0"),
    ("stop-regex-in-a-list", {"prompt": "x", "stop_regex": ["a", "a{4294967295}"]}, "stop_regex", "large"),
    ("regex-nested", {"prompt": "x", "regex": "(" * 101}, "regex", "100"),
    ("schema-nested", {"prompt": "x", "json_schema": '[' * 101}, "json_schema", "100"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "field", "limit"), LETHAL, ids=[case[0] for case in LETHAL])
def test_a_lethal_value_is_refused_by_field_and_limit(
    name: str, body: dict[str, Any], field: str, limit: str
) -> None:
    error = refusal(body)
    assert error is not None
    assert error.field == field
    assert str(error).startswith(f"{field}: ")
    assert limit in str(error)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [0, 49151]},
        {"prompt": [[0], [49151]]},
        {"prompt": ["a", "b"], "n": 2048},
        {"prompt": "x", "logprobs": VOCABULARY, "top_k": 2**31 - 1, "seed": 2**63 - 1},
        {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1000},
        {"prompt": "x", "logit_bias": {"49151": -1e9, "0": 100}},
        {"prompt": "x", "stop_token_ids": [49151], "stop_regex": [r"\d+", "[[a]"]},
        {"messages": MESSAGES, "chat_template_kwargs": {"enable_thinking": False}},
        {"prompt": "x", "regex": "(a)" * 1000},
        {"prompt": "x", "temperature": -1, "top_p": 7},  # upstream refuses these itself
    ],
)
def test_what_an_engine_can_take_is_left_alone(body: dict[str, Any]) -> None:
    assert refusal(body) is None


def test_without_a_model_the_limits_of_its_vocabulary_are_left_out() -> None:
    assert refusal({"prompt": [100000], "logprobs": 1000000}, Limits()) is None
    for name, body, field, _ in LETHAL:
        if name in ("prompt-negative-id", "n-two-billion", "top-k-int33", "stop-regex-unclosed"):
            error = refusal(body, Limits())
            assert error is not None
            assert error.field == field


def test_nesting_is_counted_to_its_limit() -> None:
    value: Any = 1
    for _ in range(checks.NESTING):
        value = [value]
    check_body({"x": value})
    with pytest.raises(Refused, match="x: must not be nested more than 100"):
        check_body({"x": {"a": value}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
FIELDS = sorted({*CompletionRequest.model_fields, *ChatCompletionRequest.model_fields})


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_whatever_a_body_holds_it_is_refused_or_left_to_the_parser(body: dict[str, Any]) -> None:
    fields = set()
    for check in (check_body, lambda fields: check_fields(fields, Limits(512))):
        try:
            check(body)
        except Refused as error:
            fields.add(error.field)
    assert fields <= set(body)


@settings(deadline=None)
@given(st.lists(st.integers(min_value=-2, max_value=520)))
def test_token_ids_pass_exactly_if_all_are_in_the_vocabulary(ids: list[int]) -> None:
    inside = all(0 <= one < 512 for one in ids)
    assert (refusal({"prompt": ids}, Limits(512)) is None) == inside
    assert (refusal({"prompt": "x", "stop_token_ids": ids}, Limits(512)) is None) == inside


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def about_an_image(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def test_a_text_that_passes_for_an_image_is_refused_beside_one_only() -> None:
    limits = Limits(VOCABULARY, ("<|image_pad|>", "<|video_pad|>"))
    literal = {"type": "text", "text": "<|image_pad|> <|vision_start|>"}
    error = refusal(about_an_image(literal, IMAGE), limits)
    assert error is not None
    assert error.field == "messages"
    assert "<|image_pad|>" in str(error)
    earlier = {"messages": [{"role": "user", "content": "<|video_pad|>"}, *about_an_image(IMAGE)["messages"]]}
    assert refusal(earlier, limits) is not None
    assert refusal(about_an_image(literal), limits) is None
    assert refusal(about_an_image({"type": "text", "text": "What is this?"}, IMAGE), limits) is None
    assert refusal(about_an_image(literal, IMAGE), MODEL) is None, "the model reads text only"


def test_a_models_limits_are_read_from_its_tokenizer() -> None:
    tokens = SimpleNamespace(image_token_id=7, video_token_id=None, audio_token_id=9)
    manager: Any = SimpleNamespace(
        model_config=SimpleNamespace(vocab_size=512),
        mm_processor=SimpleNamespace(mm_tokens=tokens),
        tokenizer=SimpleNamespace(convert_ids_to_tokens=lambda ids: ["<|image|>", None][: len(ids)]),
    )
    assert Limits.of(manager) == Limits(512, ("<|image|>",))
    manager.mm_processor = None
    assert Limits.of(manager) == Limits(512)


def test_a_prompt_of_no_tokens_is_refused_where_it_is_tokenized() -> None:
    seen = []
    manager: Any = SimpleNamespace(_validate_one_request=lambda request, ids: seen.append(ids))
    checks.refuse_empty_prompts(manager)
    request = SimpleNamespace(input_embeds=None)
    with pytest.raises(ValueError, match="at least one token"):
        manager._validate_one_request(request, [])
    manager._validate_one_request(request, [1])
    manager._validate_one_request(SimpleNamespace(input_embeds=[[0.5]]), [])
    manager._validate_one_request(request, None)
    assert seen == [[1], [], None]

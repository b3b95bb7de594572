"""Lines have one key exactly if they must get the same answer."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import line

from sglang.batch.run.answer_key import IGNORED, answer_key


def key(custom_id: str = "a", /, url: str = "/v1/completions", **body: Any) -> bytes | None:
    return answer_key(line(custom_id, url=url, body={"prompt": "p", **body}))


def test_greedy_and_seeded_requests_have_a_key_and_others_have_none() -> None:
    assert key(temperature=0) is not None
    assert key(temperature=0.7, seed=0) is not None
    assert key(seed=3) is not None
    for body in ({}, {"temperature": 0.7}, {"temperature": None}, {"seed": None}):
        assert key(**body) is None, body
    assert key(seed=True) is None
    assert key(temperature=1e-9) is None


def test_what_a_line_is_called_and_how_it_is_written_do_not_count() -> None:
    known = key(temperature=0, max_tokens=5)
    assert key("other", max_tokens=5, temperature=0.0) == known
    assert key(temperature=-0.0, max_tokens=5) == known
    for name in IGNORED - {"temperature"}:
        assert key(temperature=0, max_tokens=5, **{name: "x"}) == known, name
    spaced = json.dumps(
        json.loads(line("b", body={"temperature": 0, "prompt": "p", "max_tokens": 5})), indent=2
    )
    assert answer_key(spaced.encode()) == known


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "q"},
        {"max_tokens": 6},
        {"seed": 1},
        {"top_p": 0.5},
        {"url": "/v1/chat/completions"},
        {"model": "other"},
        {"stop": ["\n"]},
        {"temperature": 0.1, "seed": 1},
    ],
)
def test_what_may_decide_an_answer_counts(other: dict[str, Any]) -> None:
    assert key(temperature=0, max_tokens=5) != key(**{"temperature": 0, "max_tokens": 5, **other})


def test_a_seed_with_another_temperature_is_another_request() -> None:
    assert len({key(seed=1), key(seed=1, temperature=0.5), key(seed=1, temperature=1), key(seed=2)}) == 4


def test_lines_that_cannot_be_run_have_no_key() -> None:
    body = {"prompt": "p", "temperature": 0}
    assert answer_key(line("a", body=body)) is not None
    assert answer_key(line("a", body=body, url="/nowhere")) is None
    assert answer_key(line("", body=body)) is None
    assert answer_key(line("a", body={**body, "stream": True})) is None


def test_numbers_beyond_those_of_a_computer_raise_nothing() -> None:
    assert key(temperature=10**400) is None
    assert key(temperature=0, max_tokens=10**400) in (None, key(temperature=0, max_tokens=10**400))


@given(st.text() | st.binary().map(repr))
def test_no_line_raises(text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    assert answer_key(b'{"temperature": 0, "x": "' + raw) is None
    body = {"temperature": 0, "prompt": text, "n": 10**400}
    assert answer_key(b'"seed"' + raw) is None
    answer_key(line("a", body=body))

"""Tokens that a reply tells, whoever has written it."""

from __future__ import annotations

import pytest

from sglang.batch.records import Usage
from sglang.batch.reply_usage import reply_usage


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 5,
                "total_tokens": 14,
                "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(9, 4, 5, 3),
        ),
        (
            {
                "input_tokens": 9,
                "output_tokens": 5,
                "input_tokens_details": {"cached_tokens": 4},
                "output_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(9, 4, 5, 3),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 5, "reasoning_tokens": 3}, Usage(9, 0, 5, 3)),
        ({"prompt_tokens": 9, "completion_tokens": None, "prompt_tokens_details": None}, Usage(9)),
        ({"prompt_tokens": -1}, Usage()),
        ({"prompt_tokens": "many"}, Usage()),
        ({}, Usage()),
        (None, Usage()),
        ([1], Usage()),
    ],
    ids=str,
)
def test_a_reply_tells_its_tokens(told: object, usage: Usage) -> None:
    assert reply_usage(told) == usage

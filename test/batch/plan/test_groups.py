"""Groups are requests that share a prefix worth naming."""

import pytest
from plans import COST, families, make_prompts

from sglang.batch.plan.answers import assume_answers
from sglang.batch.plan.groups import find_groups


def test_groups_are_the_prefixes_that_matter_and_not_a_chat_template() -> None:
    template = [9] * 8
    prompts = make_prompts([template + prompt for prompt in families({1: 30, 2: 12, 3: 1})], cap=[20] * 43)
    workload, _, _, kept = assume_answers(prompts, output_tokens=None, longest=4096)
    groups = find_groups(workload, prompts, kept, COST)
    assert [(group.requests, group.prefix) for group in groups] == [(30, 108), (12, 108)]
    assert groups[0].sharing == pytest.approx(29 * 108 / (30 * 118))
    assert 0 < sum(group.work for group in groups) < 1
    first = prompts.tokens[prompts.offsets[groups[0].line - 1] + 8]
    assert first == 1

"""Assumed answers, groups and samples of a pool."""

import numpy as np
import pytest
from plans import COST, families, make_prompts

from sglang.batch.plan.pool import assume_answers, find_groups, sample
from sglang.srt.blend.core.pool.request_table import PRIOR_OUTPUT_TOKENS


def test_an_answer_is_as_long_as_max_tokens_allows() -> None:
    prompts = make_prompts([[1, 2]] * 3, cap=[7, 0, 9], known=[0, 0, 9])
    workload, answers, refused, _ = assume_answers(prompts, output_tokens=None, longest=4096)
    assert workload.output.tolist() == [7, PRIOR_OUTPUT_TOKENS, 9]
    assert workload.known.tolist() == [False, False, True]
    assert (answers.fixed, answers.capped, answers.open) == (1, 1, 1)
    assert not refused


def test_an_assumed_length_is_cut_by_max_tokens_and_overrides_no_fixed_one() -> None:
    prompts = make_prompts([[1, 2]] * 4, cap=[7, 500, 0, 900], known=[0, 0, 0, 900])
    workload, answers, _, _ = assume_answers(prompts, output_tokens=100, longest=4096)
    assert workload.output.tolist() == [7, 100, 100, 900]
    assert workload.max_new_tokens.tolist() == [7, 500, 4094, 900]
    assert "100 or max_tokens" in answers.text()


def test_answers_end_where_room_ends_and_prompts_without_room_are_refused_by_line() -> None:
    prompts = make_prompts([[1] * 90, [2] * 100, [3] * 10], cap=[50, 50, 0])
    workload, _, refused, kept = assume_answers(prompts, output_tokens=None, longest=100)
    assert workload.output.tolist() == [10, 90]
    assert kept.tolist() == [0, 2]
    assert [(bad.line, bad.code) for bad in refused] == [(2, "prompt_too_long")]


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


def test_a_sample_has_the_pools_density_and_sharing() -> None:
    rng = np.random.default_rng(3)
    prompts = families(dict.fromkeys(range(1, 200), 20)) + families(
        dict.fromkeys(range(300, 3300), 1), prefix=5
    )
    caps = [4] * 3980 + rng.integers(500, 1500, 3000).tolist()
    workload, _, _, _ = assume_answers(make_prompts(prompts, cap=caps), output_tokens=None, longest=4096)
    chosen = sample(workload, 1400, COST)
    assert len(chosen) == pytest.approx(1400, abs=25)
    assert np.all(np.diff(chosen) > 0)
    whole, part = workload.statistics(COST), workload.take(chosen).statistics(COST)
    assert part.sharing == pytest.approx(whole.sharing, rel=0.05)
    assert part.density == pytest.approx(whole.density, rel=0.05)


def test_a_pool_that_is_small_enough_is_its_own_sample() -> None:
    workload, _, _, _ = assume_answers(make_prompts(families({1: 5})), output_tokens=None, longest=4096)
    assert sample(workload, 5, COST).tolist() == [0, 1, 2, 3, 4]


def test_one_group_larger_than_the_sample_is_sampled_within() -> None:
    workload, _, _, _ = assume_answers(make_prompts(families({1: 4000})), output_tokens=8, longest=4096)
    chosen = sample(workload, 1000, COST)
    assert len(chosen) == pytest.approx(1000, abs=20)

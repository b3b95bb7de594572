"""Assumed answers follow what a request says, and what there is room for."""

from plans import make_prompts

from sglang.batch.plan.answers import assume_answers
from sglang.srt.blend.core.pool.output_length import OPEN_TOKENS


def test_an_answer_is_as_long_as_max_tokens_allows() -> None:
    prompts = make_prompts([[1, 2]] * 3, cap=[7, 0, 9], known=[0, 0, 9])
    workload, answers, refused, _ = assume_answers(prompts, output_tokens=None, longest=4096)
    assert workload.output.tolist() == [7, OPEN_TOKENS, 9]
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

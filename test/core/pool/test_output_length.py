"""What answers that ended and answers that run tell about those to come (paper 5.1, 5.4)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blend.core.pool.output_length import EDGES, LengthEstimator
from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts


class Answers:
    """Answers to prompts of two tokens, group and number, as they are when each has some steps at most."""

    def __init__(self, *groups, cap=8192, prompt=None):
        self.length = np.minimum(np.concatenate([np.asarray(group, np.int64) for group in groups]), cap)
        self.group = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        self.cap = np.full(len(self.length), cap)
        self.lengths = np.full(len(self.length), 2) if prompt is None else prompt
        tokens = np.stack([self.group, np.arange(len(self.length))], axis=1).ravel()
        self.prompts = SortedPrompts.of(tokens, np.arange(0, len(tokens) + 1, 2))
        assert self.prompts.slots.tolist() == list(range(len(self.length)))

    def seen(self, steps, begun=None):
        """An estimator that saw those `begun` (by default all), and everybody's group in it."""
        begun = np.ones(len(self.length), np.bool_) if begun is None else begun
        estimator = LengthEstimator()
        groups = estimator.learn(
            self.prompts,
            lengths=self.lengths,
            tokens=np.where(begun, np.minimum(self.length, steps), 0),
            ended=begun & (self.length <= steps),
            cap=self.cap,
            hint=np.zeros(len(self.length)),
        )
        return estimator, groups

    def expected(self, steps, begun=None):
        """Mean expectation of each group for an answer that has not begun."""
        estimator, groups = self.seen(steps, begun)
        expected = estimator.expected(groups, np.zeros(len(groups)), self.cap)
        return np.bincount(self.group, expected) / np.bincount(self.group)


def lognormal(mean, n, seed=0, spread=0.8):
    return 1 + np.random.default_rng(seed).lognormal(np.log(mean) - spread**2 / 2, spread, n).astype(int)


tokens = st.integers(1, 100_000)
answers = st.lists(st.tuples(tokens, st.booleans(), st.integers(0, 3)), min_size=1, max_size=40)


@given(answers, tokens, st.integers(0, 100_000))
def test_an_estimate_lies_between_what_is_generated_and_the_cap(seen, cap, generated):
    n = len(seen)
    length, ended, group = (np.array(column) for column in zip(*seen, strict=True))
    prompts = SortedPrompts.of(np.sort(group), np.arange(n + 1))
    estimator = LengthEstimator()
    caps = np.full(n, cap)
    groups = estimator.learn(
        prompts, lengths=np.ones(n), tokens=np.minimum(length, cap), ended=ended, cap=caps, hint=np.zeros(n)
    )
    given_tokens = np.full(n, min(generated, cap - 1))
    expected = estimator.expected(groups, given_tokens, caps)
    assert np.all((expected >= given_tokens + 1) & (expected <= cap))
    quarters = estimator.quantiles(groups, given_tokens, caps, 4)
    assert np.all((quarters > given_tokens[:, None]) & (quarters <= cap))
    assert np.all(np.diff(quarters, axis=1) >= 0)
    assert 0 < estimator.tail(groups, given_tokens, caps) <= cap - given_tokens[0]


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 30))
def test_an_answer_that_goes_on_never_makes_others_look_shorter(early, more, n):
    answers = Answers(np.full(n, 10**6), cap=10**6)
    assert answers.expected(early)[0] <= answers.expected(early + more)[0] * (1 + 1e-9)


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_longer_answers_let_expect_longer_ones(one, other):
    short, long = (Answers([length] * 8).expected(10**6)[0] for length in sorted((one, other)))
    assert short <= long * (1 + 1e-9)


@pytest.mark.parametrize("mean", [20, 300, 1500])
def test_means_are_found_from_answers_that_ended(mean):
    lengths = lognormal(mean, 500)
    assert Answers(lengths).expected(10**6)[0] == pytest.approx(lengths.mean(), rel=0.12)


def test_half_ended_answers_are_not_taken_for_all():
    lengths = lognormal(600, 400)
    median = int(np.median(lengths))
    naive = lengths[lengths <= median].mean()
    assert naive < 0.6 * lengths.mean()
    assert Answers(lengths).expected(median)[0] == pytest.approx(lengths.mean(), rel=0.4)


def test_a_group_of_long_answers_is_known_before_the_first_of_them_ends():
    answers = Answers(lognormal(25, 200, spread=0.4), lognormal(3000, 40, 1, spread=0.3))
    begun = np.append(np.ones(200, np.bool_), np.arange(40) < 4)
    short, long = answers.expected(100, begun)
    assert answers.length[answers.group == 1].min() > 100
    assert short < 60
    assert long > 300


def test_the_first_answers_to_end_do_not_make_other_groups_short():
    """Short answers end first. One cap for two kinds: six of the other kind run, none has ended yet."""
    begun = np.append(np.arange(500) < 4, np.arange(500) < 6)
    short, long = Answers([1, 2, 2, 3] * 125, np.full(500, 1500), cap=4096).expected(16, begun)
    assert short < 100 < 700 < long


def test_a_group_that_has_just_begun_is_taken_for_one_like_those_that_ended():
    answers = Answers(lognormal(25, 8, spread=0.3), np.full(4, 25))
    estimator = LengthEstimator()
    groups = estimator.learn(
        answers.prompts,
        lengths=answers.lengths,
        tokens=np.append(answers.length[:8], [5, 0, 0, 0]),
        ended=np.arange(12) < 8,
        cap=answers.cap,
        hint=np.zeros(12),
    )
    assert estimator.expected(groups[-1:], [0], [8192])[0] < 40


def test_siblings_of_one_prompt_inform_each_other():
    answers = Answers(*(lognormal(mean, 16, mean, spread=0.3) for mean in (200, 800, 3200)))
    begun = np.arange(48) % 16 < 6
    assert np.all(np.diff(answers.expected(10**6, begun)) > 100)


def test_a_group_of_two_kinds_is_told_apart_as_answers_run():
    lengths = np.concatenate([lognormal(20, 100, spread=0.3), lognormal(4000, 100, spread=0.2)])
    estimator, groups = Answers(lengths).seen(10**6)
    mean, later = estimator.expected(groups[:1].repeat(2), [0, 200], [8192, 8192])
    assert mean == pytest.approx(lengths.mean(), rel=0.1)
    assert later == pytest.approx(4000, rel=0.15)
    quarters = estimator.quantiles(groups[:1], [0], [8192], 4)[0]
    assert quarters[1] < 60
    assert quarters[2] > 2000


def test_answers_that_all_hit_the_cap_let_expect_the_cap():
    answers = Answers(np.full(100, 10**6), cap=2048)
    assert answers.expected(2048)[0] > 0.97 * 2048


def test_some_endless_answers_raise_the_mean_but_not_the_rest():
    lengths = np.append(lognormal(100, 190, spread=0.3), np.full(10, 10**6))
    estimator, groups = Answers(lengths, cap=4096).seen(10**6)
    looping, fresh = estimator.expected(groups[:1].repeat(2), [2000, 0], [4096, 4096])
    assert looping > 3900
    assert fresh == pytest.approx(np.minimum(lengths, 4096).mean(), rel=0.1)


def test_lengths_that_drift_are_followed():
    before = Answers(lognormal(100, 50, spread=0.3)).expected(10**6)[0]
    later = np.append(lognormal(100, 50, spread=0.3), lognormal(1000, 200, spread=0.3))
    assert before < 150
    assert Answers(later).expected(10**6)[0] > 700


def test_one_answer_of_a_group_is_not_believed_alone():
    answers = Answers(np.full(50, 30), [5000])
    assert answers.expected(10**6)[1] < 4000


def test_long_texts_are_expected_to_have_long_translations():
    """Nobody shares anything, and 60 of 300 have begun: their prompts tell how long the others will be."""
    prompt = np.random.default_rng(0).integers(30, 2000, 300)
    answers = Answers(prompt, prompt=prompt)
    estimator, groups = answers.seen(10**6, begun=np.arange(300) < 60)
    expected = estimator.expected(groups[60:], np.zeros(240), answers.cap[60:])
    assert np.corrcoef(expected, prompt[60:])[0, 1] > 0.9
    assert np.abs(expected / prompt[60:] - 1).mean() < 0.4


def test_a_length_that_tells_nothing_costs_little():
    lengths = lognormal(500, 300, spread=0.3)
    same = Answers(lengths).expected(10**6)[0]
    prompt = np.random.default_rng(0).integers(30, 2000, 300)
    assert Answers(lengths, prompt=prompt).expected(10**6)[0] == pytest.approx(same, rel=0.05)


def test_hints_of_earlier_runs_hold_until_answers_say_otherwise():
    prompts = SortedPrompts.of(np.arange(100), np.arange(101))
    ended = np.arange(100) < 50
    caps = np.full(100, 8192)

    def expected(tokens, ended, hint):
        estimator = LengthEstimator()
        groups = estimator.learn(
            prompts, lengths=np.ones(100), tokens=tokens, ended=ended, cap=caps, hint=hint
        )
        return estimator.expected(groups, np.zeros(100), caps)[99]

    zeros = np.zeros(100, np.int64)
    hinted = expected(zeros, zeros, np.full(100, 60))
    assert hinted < 0.4 * expected(zeros, zeros, zeros)
    answered = expected(np.where(ended, 2000, 0), ended, np.full(100, 60))
    assert answered > 1400


def test_quantiles_part_the_answers_that_go_on():
    lengths = lognormal(500, 2000)
    estimator, groups = Answers(lengths).seen(10**6)
    for generated in (0, 300, 900):
        on = lengths[lengths > generated]
        quarters = estimator.quantiles(groups[:1], [generated], [8192], 4)[0]
        assert np.all(np.diff(quarters) > 0)
        assert quarters[0] > generated
        assert quarters == pytest.approx(np.quantile(on, [0.125, 0.375, 0.625, 0.875]), rel=0.12)
    assert estimator.quantiles(groups[:1], [90], [100], 4)[0].max() == 100


def test_longest_of_many_answers_takes_longer_than_a_mean_one():
    lengths = lognormal(500, 300)
    estimator, groups = Answers(lengths).seen(10**6)
    fresh = np.zeros(300, np.int64)
    tail = estimator.tail(groups, fresh, np.full(300, 8192))
    assert 0.6 * lengths.max() < tail < 2.5 * lengths.max()
    assert estimator.tail(groups[:0], fresh[:0], fresh[:0]) == 0


def test_bins_grow_with_length_and_hold_every_cap():
    assert EDGES[0] == 0
    assert np.all(np.diff(EDGES) >= 1)
    assert EDGES[-1] == 1 << 20

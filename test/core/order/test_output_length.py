"""Sampling and estimation of output lengths (paper 5.1)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import pool, random_pool
from sglang.srt.blend.core.order.output_length import choose_samples, estimate_outputs
from sglang.srt.blend.core.pool.request_table import PRIOR_OUTPUT_TOKENS

PROMPTS = [[1, 1, i] for i in range(3)] + [[1, 2, i] for i in range(3)] + [[2, i] for i in range(3)]


def estimate(observed, known=0, max_new=10**6):
    tree = pool(PROMPTS).tree()
    n = len(PROMPTS)
    return estimate_outputs(
        lo=tree.lo,
        hi=tree.hi,
        parent=tree.parent,
        request_parent=tree.request_parent,
        observed=np.array([observed.get(i, -1) for i in range(n)]),
        known=np.broadcast_to(known, n),
        max_new_tokens=np.broadcast_to(max_new, n),
    ).tolist()


def test_without_answers_the_prior_holds():
    assert estimate({}) == [PRIOR_OUTPUT_TOKENS] * 9


def test_subtree_mean_then_sibling_then_ancestor():
    assert estimate({0: 10, 1: 20}) == [10, 20, 15] + [15] * 6
    assert estimate({0: 10, 6: 90}) == [10, 10, 10] + [10] * 3 + [90] * 3
    assert estimate({6: 90}) == [90] * 9


def test_cap_and_known_lengths_win():
    assert estimate({0: 1000}, max_new=50)[1:] == [50] * 8
    assert estimate({0: 1000}, known=7)[1:] == [7] * 8
    assert estimate({0: 1000}, known=70, max_new=50)[1:] == [50] * 8


def test_answer_of_nothing_still_counts_as_one_token():
    assert estimate({0: 0}) == [1] * 9


def choose(tree, fraction, covered=None, seed=0):
    covered = np.zeros(tree.num_requests, np.bool_) if covered is None else covered
    rng = np.random.default_rng(seed)
    return choose_samples(
        lo=tree.lo, hi=tree.hi, unknown=~covered, covered=covered, fraction=fraction, rng=rng
    )


@given(st.integers(0, 10**6), st.integers(0, 80), st.sampled_from([0.0, 0.05, 0.25, 1.0]), st.floats(0, 1))
def test_every_large_subtree_has_a_sample(seed, n, fraction, share):
    tree = random_pool(seed, n).tree()
    covered = np.random.default_rng(seed).random(n) < share
    picks = choose(tree, fraction, covered)
    assert not covered[picks].any()
    assert len(picks) + covered.sum() >= fraction * n
    has = covered.copy()
    has[picks] = True
    for lo, hi in zip(tree.lo, tree.hi, strict=True):
        if fraction and (~covered[lo:hi]).sum() >= np.ceil(1 / fraction):
            assert has[lo:hi].any()
    if fraction == 0.0:
        assert len(picks) == 0


def test_enough_answers_need_no_more_samples():
    tree = pool([[i] for i in range(100)]).tree()
    assert len(choose(tree, 0.05)) == 5
    covered = np.arange(100) < 5
    assert len(choose(tree, 0.05, covered)) == 0


def test_samples_depend_on_the_seed_alone():
    tree = random_pool(1, 80).tree()
    assert np.array_equal(choose(tree, 0.1, seed=3), choose(tree, 0.1, seed=3))
    assert not np.array_equal(choose(tree, 0.1, seed=3), choose(tree, 0.1, seed=4))


def test_impossible_fraction_is_named():
    with pytest.raises(ValueError, match="sample fraction must be between 0 and 1, got 2"):
        choose(pool([[1]]).tree(), 2)

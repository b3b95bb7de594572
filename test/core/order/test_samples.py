"""Which requests run first, so that their answers tell about others (paper 5.1)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import planner_for, pool, random_pool
from sglang.srt.blend.core.order.samples import SAME_PROMPT, choose_samples


def choose(tree, fraction, covered=None, seed=0, at_least=None):
    covered = np.zeros(tree.num_requests, np.bool_) if covered is None else covered
    return choose_samples(
        lo=tree.lo,
        hi=tree.hi,
        at_least=np.full(len(tree.lo), at_least or int(np.ceil(1 / (fraction or 1)))),
        unknown=~covered,
        covered=covered,
        fraction=fraction,
        rng=np.random.default_rng(seed),
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


def sampled(planner):
    planner.replan()
    return np.flatnonzero(planner.table.sampled)


def test_few_requests_with_another_cap_are_sampled_and_those_with_the_largest_go_first():
    requests = pool([[i, i] for i in range(300)], 9, known=False, max_new=100)
    requests.max_new[[17, 180, 200]] = 5000
    planner = planner_for(requests, sample_fraction=0.01)
    picks = sampled(planner)
    assert {17, 180, 200} <= set(picks.tolist())
    assert set(planner.propose(3)) == {17, 180, 200}


def test_one_of_each_prompt_that_is_asked_for_several_times_is_sampled():
    prompts = [[prompt, 7] for prompt in range(20) for _ in range(SAME_PROMPT)]
    planner = planner_for(pool(prompts, 9, known=False, max_new=1000), sample_fraction=0.01)
    assert {slot // SAME_PROMPT for slot in sampled(planner).tolist()} == set(range(20))


def test_a_prefix_that_fills_much_of_the_cache_is_not_computed_for_a_sample():
    """Until the others who share it come, it would have left the cache."""
    documents = [[document] * 100 + [i] for document in range(20) for i in range(30)]
    requests = pool(documents, 9, known=False, max_new=1000)
    assert len(sampled(planner_for(requests, kv_capacity=6000))) == 0
    assert len(sampled(planner_for(requests, kv_capacity=64_000))) > 0


def test_what_hangs_beside_a_large_subtree_and_prompts_of_another_length_are_sampled_too():
    """One cap for all: only prompts tell long answers behind a template from short ones to long texts."""
    template = [[7] * 5 + [i] for i in range(100)]
    bare = [[100 + i] * 6 for i in range(100)]
    long = [[200 + i] * 40 for i in range(100)]
    requests = pool([*template, *bare, *long], 9, known=False, max_new=4096)
    kinds = sampled(planner_for(requests, kv_capacity=10**6, sample_fraction=0.01)) // 100
    assert np.bincount(kinds).tolist() == [4, 4, 4]


def test_few_of_a_kind_need_no_sample():
    prompts = [[i] * (24 if i < 24 else 5) for i in range(300)]
    planner = planner_for(
        pool(prompts, 9, known=False, max_new=4096), kv_capacity=10**6, sample_fraction=0.01
    )
    assert len(sampled(planner)) == 4


def test_who_runs_anyway_is_sample_enough():
    planner = planner_for(pool([[i, i] for i in range(60)], 9, known=False, max_new=1000), kv_capacity=10**6)
    for slot in range(10):
        planner.admit(slot)
    assert len(sampled(planner)) == 0

"""Sort, split and merge (paper 5.2)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import llama_on_a100, mixed_pool, pool, random_pool
from sglang.srt.blend.core.order.ordering import order_by_density
from sglang.srt.blend.core.order.sharing_account import Sharing

pools = st.builds(
    random_pool,
    seed=st.integers(0, 10**6),
    n=st.integers(0, 60),
    vocabulary=st.integers(1, 4),
    longest=st.integers(0, 10),
    stretch=st.sampled_from([1, 40]),
)
budgets = st.sampled_from([0.0, 0.3, 0.7, 0.9, 0.99, 1.0])


def rises(density):
    """Places where a density sequence goes up."""
    with np.errstate(invalid="ignore"):
        return np.flatnonzero(np.diff(density) > 0)


@given(pools, budgets)
def test_order_is_a_permutation(requests, budget):
    tree = requests.tree()
    result = order_by_density(tree, llama_on_a100(), sharing_budget=budget)
    assert sorted(result.order.tolist()) == list(range(len(requests)))


@given(pools, budgets)
def test_splits_keep_the_budgeted_share_of_depth_first_sharing(requests, budget):
    tree = requests.tree()
    result = order_by_density(tree, llama_on_a100(), sharing_budget=budget)
    assert result.shared_tokens >= budget * tree.shared_tokens


@given(pools, budgets, st.integers(0, 1000), st.integers(0, 1000))
def test_what_was_lost_before_is_not_lost_again(requests, budget, kept, lost):
    tree, before = requests.tree(), Sharing(kept, lost)
    result = order_by_density(tree, llama_on_a100(), sharing_budget=budget, before=before)
    left = (1 - budget) * (tree.shared_tokens + kept + lost) - lost
    assert tree.shared_tokens - result.shared_tokens <= max(left, 0) + 1e-6
    assert result.shared_tokens >= budget * tree.shared_tokens


@given(pools)
def test_without_a_budget_leaves_are_sorted_by_density(requests):
    result = order_by_density(requests.tree(), llama_on_a100(), sharing_budget=0.0)
    assert len(rises(result.density)) == 0


@given(pools)
def test_unsplit_order_keeps_all_sharing(requests):
    tree = requests.tree()
    result = order_by_density(tree, llama_on_a100(), split=False)
    assert result.splits == 0
    assert result.shared_tokens == tree.shared_tokens


@given(pools, budgets)
def test_reported_sharing_is_that_of_walking_the_order_within_its_subtrees(requests, budget):
    """A walk of the real prompts shares at least what is reported."""
    order = requests.sorted().slots
    result = order_by_density(requests.tree(), llama_on_a100(), sharing_budget=budget)
    walked = [requests.prompts[slot] for slot in order[result.order]]
    for shared, a, b in zip(result.shared[1:], walked, walked[1:], strict=False):
        assert shared <= min(len(a), len(b))
        assert np.array_equal(a[:shared], b[:shared])


@given(pools, budgets)
def test_effective_compute_adds_up_to_that_of_the_walk(requests, budget):
    """Dividing prefixes among their sharers changes whose seconds they are, not how many."""
    tree, cost = requests.tree(), llama_on_a100()
    result = order_by_density(tree, cost, sharing_budget=budget)
    walk = tree.comp[result.order] - cost.prefix_comp(result.shared)
    assert result.comp.sum() == pytest.approx(walk.sum(), rel=1e-9)


@given(pools, budgets)
def test_splits_never_add_disorder(requests, budget):
    tree, cost = requests.tree(), llama_on_a100()
    before = order_by_density(tree, cost, split=False)
    after = order_by_density(tree, cost, sharing_budget=budget)
    if budget == 0.0 or after.splits == 0:
        assert len(rises(after.density)) <= len(rises(before.density))


def test_one_outlier_in_a_shared_subtree_moves_to_its_density():
    """Paper Figure 5: a long generation among short answers of one prefix goes to the memory end."""
    shared = [7] * 20
    prompts = [[*shared, i] for i in range(200)] + [[9, i, i] for i in range(50)]
    output = [2] * 199 + [20_000] + [200] * 50
    requests = pool(prompts, output)
    tree = requests.tree()
    result = order_by_density(tree, llama_on_a100())
    order = requests.sorted().slots
    assert order[result.order[-1]] == 199
    assert result.splits == 1
    assert tree.shared_tokens - result.shared_tokens == 20


def test_outliers_move_together_and_go_on_sharing():
    """A cut costs the prefix once, however many requests move."""
    shared = [7] * 20
    prompts = [[*shared, i] for i in range(100)] + [[9, i, i] for i in range(50)]
    output = [2] * 80 + [20_000] * 20 + [200] * 50
    tree = pool(prompts, output).tree()
    result = order_by_density(tree, llama_on_a100())
    assert (result.splits, tree.shared_tokens - result.shared_tokens) == (1, 20)
    assert len(rises(result.density)) == 0


def test_split_stops_where_the_budget_ends():
    """Two groups want to be cut, and there is budget for one: the one with more misplaced work."""
    prompts = [[7] * 20 + [i] for i in range(50)] + [[8] * 20 + [i] for i in range(50)]
    output = [2] * 49 + [20_000] + [2] * 49 + [10_000]
    tree = pool([*prompts, [9]], [*output, 200]).tree()
    result = order_by_density(tree, llama_on_a100(), sharing_budget=0.985)
    assert result.splits == 1
    assert len(rises(result.density)) > 0
    assert tree.shared_tokens - result.shared_tokens == 20


def test_whole_root_subtrees_that_overlap_are_broken_up():
    """No single request is off the longest run of one subtree, yet the two interleave in density."""
    output = [2, 900, 1000, 1100, 1200, 30, 31]
    prompts = [[1, 1, i] for i in range(5)] + [[2, 2, i] for i in range(2)]
    result = order_by_density(pool(prompts, output).tree(), llama_on_a100(), sharing_budget=0.0)
    assert len(rises(result.density)) == 0


def test_a_subtree_that_shares_a_long_prompt_is_not_taken_for_dense_leaves():
    """Requests that compute only their own suffix are not outliers for their long common prefix."""
    long = list(range(3000))
    prompts = [[*long, 10_000 + i] for i in range(200)] + [[20_000 + i] * 200 for i in range(100)]
    output = [100] * 200 + [90] * 50 + [110] * 50
    tree = pool(prompts, output).tree()
    result = order_by_density(tree, llama_on_a100(), sharing_budget=0.5)
    assert result.splits == 0
    assert result.shared_tokens == tree.shared_tokens


def test_infinite_densities_come_first():
    result = order_by_density(pool([[1], [2], [3]], [5, 0, 50]).tree(), llama_on_a100())
    assert result.order.tolist() == [1, 0, 2]
    assert np.isinf(result.density[0])


def test_identical_prompts_with_different_outputs_are_sorted_within_their_node():
    result = order_by_density(pool([[1, 2, 3]] * 4, [50, 5, 500, 1]).tree(), llama_on_a100())
    assert result.order.tolist() == [3, 1, 0, 2]
    assert result.shared_tokens == 9


def test_groups_keep_sharers_together_up_to_their_size():
    prompts = [[1, 1, i] for i in range(6)] + [[2, 5], [3, 5]]
    tree = pool(prompts, 1).tree()
    kv = 6 * 4 - 5 * 2  # prompts and outputs, the prefix once
    together = order_by_density(tree, llama_on_a100(), group_tokens=kv)
    assert [np.count_nonzero(together.group == g) for g in np.unique(together.group)] == [6, 1, 1] or [
        np.count_nonzero(together.group == g) for g in np.unique(together.group)
    ] == [1, 1, 6]
    halves = order_by_density(tree, llama_on_a100(), group_tokens=kv // 2)
    assert np.bincount(halves.group).max() < 6
    single = order_by_density(tree, llama_on_a100(), group_tokens=0)
    assert single.group.tolist() == list(range(8))


@given(pools, budgets, st.integers(0, 2000))
def test_group_density_is_that_of_its_members(requests, budget, group_tokens):
    tree = requests.tree()
    result = order_by_density(tree, llama_on_a100(), sharing_budget=budget, group_tokens=group_tokens)
    assert np.all(np.diff(result.group) >= 0)
    for number in np.unique(result.group):
        members = result.group == number
        rho = result.comp[members].sum() / tree.mem[result.order[members]].sum()
        assert result.group_density[number] == pytest.approx(rho)


def test_default_budget_nearly_sorts_a_mixture_of_traces():
    """Paper 5.2: about 0.1% to 1% of leaves split, sharing stays above 99%."""
    requests = mixed_pool(1, 4000)
    tree = requests.tree()
    cost = llama_on_a100()
    before = order_by_density(tree, cost, split=False)
    after = order_by_density(tree, cost)
    assert after.shared_tokens >= 0.99 * tree.shared_tokens
    assert 0 < after.splits < 0.05 * len(requests)
    assert disorder(after) < 0.7 * disorder(before)


def disorder(result):
    """Mean distance in log density between the leaf order and a full sort."""
    logs = np.log(result.density)
    return np.abs(logs - np.sort(logs)[::-1]).mean()


def test_impossible_budget_is_named():
    with pytest.raises(ValueError, match="sharing budget must be between 0 and 1, got 2"):
        order_by_density(pool([[1]]).tree(), llama_on_a100(), sharing_budget=2)

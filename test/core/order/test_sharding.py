"""Data-parallel parts (paper 5.5): a partition, equal work, equal density, sharing kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import llama_on_a100, mixed_pool, pool, random_pool
from sglang.srt.blend.core.order.sharding import shard

seeds = st.integers(0, 10**6)
parts_of = st.integers(1, 9)
pools = st.builds(
    random_pool,
    seed=seeds,
    n=st.integers(0, 60),
    vocabulary=st.integers(1, 4),
    longest=st.integers(0, 10),
    stretch=st.sampled_from([1, 40]),
)


def shard_pool(requests, parts, **options):
    return shard(
        requests.tokens,
        requests.offsets,
        requests.output,
        llama_on_a100(),
        parts,
        namespace=requests.namespace,
        **options,
    )


def small_requests(seed, n=3000):
    """Compute- and memory-intensive requests, none of them more than a thousandth of the work."""
    rng = np.random.default_rng(seed)
    long = rng.random(n) < 0.3
    subjects = [rng.integers(0, 9999, 200).tolist() for _ in range(40)]
    prompts = [
        [*subjects[rng.integers(40)], *rng.integers(0, 9999, rng.integers(20, 200))]
        if not is_long
        else rng.integers(0, 9999, rng.integers(20, 60)).tolist()
        for is_long in long
    ]
    return pool(prompts, np.where(long, rng.integers(400, 900, n), rng.integers(1, 20, n)))


def under_one_prompt(seed, n=2000):
    """Everything below the same long prefix, answers of all lengths."""
    rng = np.random.default_rng(seed)
    prefix = rng.integers(0, 9999, 700).tolist()
    prompts = [[*prefix, *rng.integers(0, 9999, 50)] for _ in range(n)]
    return pool(prompts, rng.lognormal(5, 0.7, n).clip(1, 900).astype(np.int64))


many_small = st.sampled_from([small_requests, under_one_prompt])


# ------------------------------------------------------------------ a partition


@given(pools, parts_of)
def test_every_request_is_in_exactly_one_part(requests, parts):
    shards = shard_pool(requests, parts)
    assert len(shards.parts) == parts
    every = np.concatenate([part.requests for part in shards.parts])
    assert sorted(every.tolist()) == list(range(len(requests)))
    assert all(np.all(np.diff(part.requests) > 0) for part in shards.parts)


@given(pools)
def test_one_part_is_everything(requests):
    shards = shard_pool(requests, 1)
    assert shards.parts[0].requests.tolist() == list(range(len(requests)))
    assert (shards.sharing_kept, shards.imbalance) == (1.0, 0.0)
    assert shards.shared_tokens == requests.tree().shared_tokens


@given(pools, parts_of)
def test_equal_pools_give_equal_parts(requests, parts):
    first, second = shard_pool(requests, parts), shard_pool(requests, parts)
    for a, b in zip(first.parts, second.parts, strict=True):
        assert np.array_equal(a.requests, b.requests)


@given(pools, parts_of)
def test_totals_of_a_part_are_those_of_its_own_tree(requests, parts):
    for part in shard_pool(requests, parts).parts:
        chosen = part.requests
        alone = pool([requests.prompts[i] for i in chosen], requests.output[chosen]).tree()
        assert part.comp == pytest.approx((alone.comp - alone.saved).sum())
        assert part.mem == pytest.approx(alone.mem.sum())
        assert part.shared_tokens == alone.shared_tokens


@pytest.mark.parametrize("prompts", [[], [[]], [[], []], [[5, 5]] * 7, [[1], [1, 2], [1, 2, 3], [1, 2, 3]]])
@pytest.mark.parametrize("output", [0, 3])
def test_degenerate_pools_are_divided(prompts, output):
    shards = shard_pool(pool(prompts, output), 3)
    assert sum(len(part.requests) for part in shards.parts) == len(prompts)
    assert 0.0 <= shards.sharing_kept <= 1.0


def test_with_more_parts_than_requests_each_is_alone():
    shards = shard_pool(pool([[i] * 50 for i in range(5)], [1, 10, 100, 1000, 10_000]), 8)
    assert sorted(len(part.requests) for part in shards.parts) == [0, 0, 0, 1, 1, 1, 1, 1]
    empty = next(part for part in shards.parts if not len(part.requests))
    assert (empty.work, empty.density) == (0.0, 0.0)


# ------------------------------------------------------------------ balance


@given(many_small, seeds, st.integers(2, 8))
def test_work_of_many_small_requests_is_equal_within_one_percent(kind, seed, parts):
    requests = kind(seed)
    shards = shard_pool(requests, parts)
    works = [part.work for part in shards.parts]
    assert max(works) <= 1.01 * np.mean(works)
    assert min(works) >= 0.99 * np.mean(works)
    assert shards.imbalance == pytest.approx(max(works) / np.mean(works) - 1)


@given(many_small, seeds, st.integers(2, 8))
def test_density_of_each_part_is_the_root_s_within_two_percent(kind, seed, parts):
    requests = kind(seed)
    shards = shard_pool(requests, parts)
    tree = requests.tree()
    root = (tree.comp - tree.saved).sum() / tree.mem.sum()
    for part in shards.parts:
        assert part.density == pytest.approx(root, rel=0.02)


@given(seeds, st.integers(2, 4))
def test_a_mixture_with_few_long_answers_is_balanced_within_a_long_answer(seed, parts):
    requests = mixed_pool(seed, 1000)
    shards = shard_pool(requests, parts)
    tree = requests.tree()
    largest = (tree.comp + tree.mem).max()
    works = [part.work for part in shards.parts]
    assert max(works) - min(works) <= largest + 0.01 * np.mean(works)


@given(seeds, st.integers(2, 6), st.booleans())
def test_the_longest_answers_are_spread_over_the_parts(seed, parts, system_prompt):
    """A system prompt that costs next to nothing must not bring them together."""
    rng = np.random.default_rng(seed)
    system = list(range(60)) if system_prompt else []
    prompts = [[*system, *rng.integers(100, 9999, 40)] for _ in range(8 * parts)]
    prompts += [[7, i, *rng.integers(100, 9999, 800)] for i in range(400)]
    output = np.concatenate([rng.integers(9000, 11_000, 8 * parts), np.full(400, 5)])
    shards = shard_pool(pool(prompts, output), parts)
    counts = [int((part.requests < 8 * parts).sum()) for part in shards.parts]
    assert max(counts) - min(counts) <= 1
    longest = np.argsort(-output)[:parts]
    assert all(np.isin(longest, part.requests).sum() == 1 for part in shards.parts)


def test_estimates_are_taken_as_they_are():
    """Balance is that of the lengths given, whatever the answers turn out to be."""
    prompts = [[i] * 20 for i in range(400)]
    truth = pool(prompts, np.where(np.arange(400) % 2, 900, 10))
    believed = shard_pool(pool(prompts, 300), 2)
    assert [len(part.requests) for part in believed.parts] == [200, 200]
    assert believed.imbalance == pytest.approx(0.0, abs=1e-9)
    told = shard_pool(truth, 2)
    assert [int((truth.output[part.requests] == 900).sum()) for part in told.parts] == [100, 100]


def test_compute_beside_the_decoder_is_work_too():
    requests = pool([[i] * 20 for i in range(40)], 10)
    vision = np.where(np.arange(40) < 8, 5.0, 0.0)
    shards = shard_pool(requests, 4, extra_compute=vision)
    assert [int((part.requests < 8).sum()) for part in shards.parts] == [2, 2, 2, 2]


# ------------------------------------------------------------------ sharing


@given(pools, parts_of)
def test_sharing_lost_is_what_the_parts_compute_again(requests, parts):
    """At worst each part computes the whole tree's prefixes once."""
    shards = shard_pool(requests, parts)
    tree = requests.tree()
    edges = tree.depth[1:] - tree.depth[tree.parent[1:]]
    assert 0 <= shards.possible_tokens - shards.shared_tokens <= (parts - 1) * edges.sum()


@given(seeds, st.integers(2, 8))
def test_small_subtrees_are_never_cut(seed, parts):
    requests = small_requests(seed)
    tree = requests.tree()
    order = requests.sorted().slots
    owner = np.empty(len(requests), np.int64)
    for number, part in enumerate(shard_pool(requests, parts).parts):
        owner[part.requests] = number
    # Above what the subtree is charged: its own nodes' prefixes and an even part of those above.
    work = tree.node_comp - tree.node_saved + tree.node_mem
    share = ((tree.comp - tree.saved).sum() + tree.mem.sum()) / parts
    small = np.flatnonzero(work <= share / 256)
    assert len(small)
    for node in small:
        assert len(set(owner[order[tree.lo[node] : tree.hi[node]]].tolist())) == 1


@given(seeds, st.sampled_from([2, 4]))
def test_a_mixture_keeps_99_percent_of_its_sharing(seed, parts):
    assert shard_pool(mixed_pool(seed, 2000), parts).sharing_kept >= 0.99


@given(seeds, st.integers(2, 8))
def test_a_single_large_group_is_cut_and_costs_its_prefix_once_per_further_part(seed, parts):
    shards = shard_pool(under_one_prompt(seed), parts)
    assert all(len(part.requests) for part in shards.parts)
    lost = shards.possible_tokens - shards.shared_tokens
    # Prompts that happen to go on with the same random token share that one as well.
    assert 700 * (parts - 1) <= lost <= 710 * (parts - 1) + 100


def test_parts_are_equal_within_a_document_while_documents_stay_whole():
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 9999, 1000).tolist() for _ in range(200)]
    prompts = [[*document, *rng.integers(0, 9999, 20)] for document in documents for _ in range(5)]
    shards = shard_pool(pool(prompts, rng.integers(100, 900, 1000)), 4)
    assert shards.sharing_kept >= 0.98
    assert shards.imbalance <= 4 / 200


def test_one_answer_too_long_for_a_part_does_not_cost_the_others_their_sharing():
    """Nothing can make these parts equal, so nothing is gained by cutting."""
    rng = np.random.default_rng(0)
    subjects = [rng.integers(0, 9999, 700).tolist() for _ in range(60)]
    prompts = [[*subjects[i % 60], *rng.integers(0, 9999, 100)] for i in range(1200)]
    shards = shard_pool(pool([*prompts, [1] * 50], [2] * 1200 + [60_000]), 4)
    assert shards.imbalance > 0.2
    assert shards.sharing_kept >= 0.99


def test_namespaces_share_nothing():
    requests = pool([[1, 2, 3, 4]] * 8, 5, namespace=[0, 0, 0, 0, 1, 1, 1, 1])
    assert shard_pool(requests, 1).shared_tokens == 2 * 3 * 4


# ------------------------------------------------------------------ errors


def test_parts_must_be_positive():
    with pytest.raises(ValueError, match="parts must be at least 1, got 0"):
        shard_pool(pool([[1]]), 0)


def test_arrays_of_another_length_are_named():
    with pytest.raises(ValueError, match="extra_compute has 3 entries for 1 requests"):
        shard_pool(pool([[1]]), 2, extra_compute=np.zeros(3))

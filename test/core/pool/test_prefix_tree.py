"""Sorted prompts, their tree and its annotations, against definitions."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import llama_on_a100, pool, random_pool
from sglang.srt.blend.core.pool import prefix_sort
from sglang.srt.blend.core.pool.token_store import TokenStore

seeds = st.integers(0, 10**6)
EXTREME = [-(2**31), -1, 0, 1, 2**31 - 2, 2**31 - 1]


def common(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@given(st.lists(st.lists(st.sampled_from(EXTREME), max_size=4), max_size=60))
def test_prompts_of_any_int32_tokens_are_sorted(prompts):
    prompts_sorted = pool(prompts).sorted()
    order, lcp = prompts_sorted.slots, prompts_sorted.common
    assert order.tolist() == sorted(range(len(prompts)), key=lambda i: (prompts[i], i))
    pairs = itertools.pairwise(order)
    assert lcp.tolist()[1:] == [common(prompts[a], prompts[b]) for a, b in pairs]


def test_namespaces_share_nothing():
    by_space = pool([[1, 2]] * 4, namespace=[1, 0, 1, 0]).sorted()
    order, lcp = by_space.slots, by_space.common
    assert order.tolist() == [1, 3, 0, 2]
    assert lcp.tolist() == [0, 2, 0, 2]


@given(seeds, st.integers(0, 80))
def test_every_annotation_is_a_sum_over_the_requests_below(seed, n):
    requests, cost = random_pool(seed, n), llama_on_a100()
    tree = requests.tree(cost)
    order = requests.sorted().slots
    prompts = [tuple(requests.prompts[i].tolist()) for i in order]
    assert tree.parent[0] == -1
    assert np.all(tree.parent[1:] < np.arange(1, len(tree.parent)))
    for node in range(len(tree.lo)):
        below = prompts[tree.lo[node] : tree.hi[node]]
        prefix = below[0][: tree.depth[node]] if below else ()
        assert below == [p for p in prompts if p[: len(prefix)] == prefix]
        trie = {p[: k + 1] for p in below for k in range(len(p))}
        output = requests.output[order][tree.lo[node] : tree.hi[node]]
        assert tree.node_requests[node] == len(below)
        assert tree.node_kv_tokens[node] == len(trie) + output.sum()
        unshared = sum(float(cost.prefix_comp(len(p)) - cost.prefix_comp(len(p) - 1)) for p in trie)
        decode = float(cost.comp(0, output).sum())
        assert tree.node_comp[node] - tree.node_saved[node] == pytest.approx(unshared + decode, rel=1e-6)
        assert tree.node_mem[node] == pytest.approx(tree.mem[tree.lo[node] : tree.hi[node]].sum(), rel=1e-6)
    for i, node in enumerate(tree.request_parent):
        around = [common(prompts[i], prompts[j]) for j in (i - 1, i + 1) if 0 <= j < n]
        assert tree.depth[node] == max(around, default=0)


@given(seeds, st.integers(0, 40), st.integers(0, 40))
def test_merging_and_removing_equal_sorting_anew(seed, old, new):
    requests = random_pool(seed, old + new)
    requests.namespace[:] = np.arange(old + new) % 2
    store = TokenStore()
    store.put(requests.tokens, requests.offsets)
    arrays = store.data, store.start, store.length, requests.namespace
    everyone = np.random.default_rng(seed).permutation(old + new)
    first, second = (prefix_sort.sort_prompts(*arrays, part) for part in (everyone[:old], everyone[old:]))
    order, lcp = prefix_sort.merge_sorted(
        *arrays, first, prefix_sort.neighbour_prefixes(*arrays, first), second
    )
    anew = requests.sorted()
    assert np.array_equal(order, anew.slots)
    assert np.array_equal(lcp, anew.common)
    keep = np.random.default_rng(seed).random(old + new) < 0.5
    kept, prefixes = prefix_sort.remove_sorted(order, lcp, keep)
    assert np.array_equal(kept, order[keep])
    assert np.array_equal(prefixes, prefix_sort.neighbour_prefixes(*arrays, kept))


@given(seeds, st.integers(0, 60), st.lists(st.integers(0, 3), max_size=6), st.integers(0, 6))
def test_narrowing_finds_those_who_go_on_with_the_tokens(seed, n, path, cut):
    requests = random_pool(seed, n)
    order = requests.sorted().slots
    store = TokenStore()
    store.put(requests.tokens, requests.offsets)
    arrays = store.data, store.start, store.length, order
    tokens = np.array(path, np.int64)
    lo, hi = prefix_sort.narrow(*arrays, 0, n, 0, tokens[:cut])
    lo, hi = prefix_sort.narrow(*arrays, lo, hi, len(tokens[:cut]), tokens[cut:])
    expected = [i for i in order if requests.prompts[i][: len(path)].tolist() == path]
    assert order[lo:hi].tolist() == expected


# ------------------------------------------------------------------ token store


@given(seeds)
def test_store_keeps_live_prompts_through_reuse_and_compaction(seed):
    rng = np.random.default_rng(seed)
    store, live = TokenStore(), {}
    for _ in range(40):
        if live and rng.random() < 0.5:
            gone = rng.choice(list(live), int(rng.integers(1, len(live) + 1)), replace=False)
            store.drop(gone)
            for slot in gone.tolist():
                del live[slot]
        else:
            requests = random_pool(int(rng.integers(10**6)), int(rng.integers(0, 8)), stretch=100)
            for slot, prompt in zip(
                store.put(requests.tokens, requests.offsets), requests.prompts, strict=True
            ):
                assert int(slot) not in live
                live[int(slot)] = prompt.tolist()
        for slot, prompt in live.items():
            assert store.prompt(slot).tolist() == prompt
    total = sum(map(len, live.values()))
    assert store._used <= 2 * total + 4096


def test_first_put_takes_the_array_as_it_is_and_never_writes_to_it():
    tokens = np.arange(10, dtype=np.int32)
    tokens.flags.writeable = False
    store = TokenStore()
    store.put(tokens, np.array([0, 4, 10]))
    assert store.data is tokens
    store.put(np.array([7], np.int32), np.array([0, 1]))
    assert store.prompt(2).tolist() == [7]
    assert tokens.tolist() == list(range(10))


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 2], [0, 4], [0, 2, 1, 3]])
def test_offsets_that_do_not_cover_the_tokens_are_refused(offsets):
    with pytest.raises(ValueError, match="offsets must ascend from 0 to 3"):
        TokenStore().put(np.zeros(3, np.int32), np.array(offsets, np.int64))

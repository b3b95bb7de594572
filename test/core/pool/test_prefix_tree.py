"""Sorted prompts, their tree and its annotations, against definitions."""

import itertools
from dataclasses import replace

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
    tree._check()
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


def test_the_check_sees_a_request_that_hangs_too_high():
    tree = random_pool(0, 20).tree()
    tree._check()
    with pytest.raises(AssertionError):
        replace(tree, request_parent=np.zeros(20, np.int64))._check()


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

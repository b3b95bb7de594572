"""Sorted prompts against a plain sort, through any order of arrivals and departures."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pools import llama_on_a100, random_pool
from sglang.srt.blend.core.pool import workload as workload_module
from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts
from sglang.srt.blend.core.pool.token_store import TokenStore
from sglang.srt.blend.core.pool.workload import Workload

seeds = st.integers(0, 10**6)


@given(seeds, st.integers(0, 60), st.integers(1, 5))
def test_inserting_in_parts_and_dropping_equal_sorting_at_once(seed, n, parts):
    rng = np.random.default_rng(seed)
    requests = random_pool(seed, n)
    requests.namespace[:] = rng.integers(0, 3, n)
    store = TokenStore()
    slots = store.put(requests.tokens, requests.offsets)
    prompts = SortedPrompts()
    for part in np.array_split(rng.permutation(slots), parts):
        prompts = prompts.insert(store, part, requests.namespace)
        prompts._check(store, requests.namespace)
    assert np.array_equal(prompts.slots, requests.sorted().slots)
    gone = slots[rng.random(n) < 0.5]
    left = prompts.drop(gone)
    left._check(store, requests.namespace)
    assert set(left.slots.tolist()) == set(slots.tolist()) - set(gone.tolist())
    assert np.array_equal(left.slots, prompts.subset(~np.isin(prompts.slots, gone)).slots)
    assert len(prompts) == n  # operations return new objects


@given(seeds, st.integers(1, 40))
def test_the_tree_of_a_subset_is_that_of_its_prompts_alone(seed, n):
    requests = random_pool(seed, n)
    prompts = requests.sorted()
    kept = np.random.default_rng(seed).random(n) < 0.6
    part = prompts.subset(kept)
    store = TokenStore()
    chosen = [requests.prompts[slot] for slot in part.slots]
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in chosen])]).astype(np.int64)
    slots = store.put(np.concatenate([np.zeros(0, np.int32), *chosen]), offsets)
    alone = SortedPrompts().insert(store, slots)
    prompt, output = requests.lengths[part.slots], requests.output[part.slots]
    trees = [one.tree(prompt, output, llama_on_a100()) for one in (part, alone)]
    assert trees[0].shared_tokens == trees[1].shared_tokens == int(part.common.sum())
    assert np.array_equal(trees[0].lo, trees[1].lo)


def test_dropping_what_is_not_there_changes_nothing():
    prompts = random_pool(1, 5).sorted()
    assert np.array_equal(prompts.drop([17, 99]).slots, prompts.slots)
    assert len(SortedPrompts().drop([3])) == 0


def test_a_workload_is_sorted_once_however_often_it_is_asked(monkeypatch):
    made = []

    class Counted(SortedPrompts):
        @classmethod
        def of(cls, *args):
            made.append(1)
            return SortedPrompts.of(*args)

    monkeypatch.setattr(workload_module, "SortedPrompts", Counted)
    requests = random_pool(3, 20)
    output = requests.output.astype(np.int32)
    workload = Workload(
        tokens=requests.tokens,
        offsets=requests.offsets,
        output=output,
        max_new_tokens=output,
        known=requests.known,
        source=np.zeros(20, np.int16),
    )
    for _ in range(3):
        workload.depth_first_order()
        workload.tree(llama_on_a100())
        workload.statistics(llama_on_a100())
    assert made == [1]

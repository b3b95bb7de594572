"""Prompts by slot: kept while they live, their room reclaimed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import pool, random_pool
from sglang.srt.blend.core.pool.token_store import TokenStore

seeds = st.integers(0, 10**6)


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
        store._check()


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


def test_room_of_dropped_prompts_is_reclaimed_when_it_outweighs_the_rest():
    store, requests = TokenStore(), pool([[1] * 3000, [2] * 3000, [3] * 3000])
    slots = store.put(requests.tokens, requests.offsets)
    store.drop(slots[0])
    assert len(store.data) == 9000
    store.drop(slots[1])
    assert len(store.data) == 3000
    assert store.prompt(2).tolist() == [3] * 3000
    store._check()


def overlap(store):
    store.start[1] -= 1


def lose_a_slot(store):
    store._free.clear()


def never_reclaim(store):
    store._used += 10_000
    store._dead += 10_000
    store.data = np.resize(store.data, store._used)


@pytest.mark.parametrize("spoil", [overlap, lose_a_slot, never_reclaim])
def test_the_check_sees_what_is_wrong(spoil):
    store, requests = TokenStore(), pool([[1, 2], [3], [4]])
    store.put(requests.tokens, requests.offsets)
    store.drop(np.array([2]))
    store._check()
    spoil(store)
    with pytest.raises(AssertionError):
        store._check()

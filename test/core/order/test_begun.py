"""Prefixes that are in use when a new plan is made."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pools import llama_on_a100, planner_for, pool
from sglang.srt.blend.core.order.begun import begun_requests, held_tokens
from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts


def agree(a, b):
    """Tokens on which two prompts agree from the beginning."""
    same = np.flatnonzero([x != y for x, y in zip(a, b, strict=False)])
    return int(same[0]) if len(same) else min(len(a), len(b))


prompts_and_holders = st.lists(
    st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=6), st.booleans()), min_size=1, max_size=12
)


@given(prompts_and_holders)
def test_held_is_what_the_most_similar_holder_shares(drawn):
    prompts, holds = zip(*drawn, strict=True)
    offsets = np.cumsum([0, *map(len, prompts)])
    in_order = SortedPrompts.of(np.concatenate(prompts), offsets)
    flags = np.array(holds)[in_order.slots]
    held = held_tokens(in_order.common, flags)
    for slot, tokens in zip(in_order.slots.tolist(), held.tolist(), strict=True):
        shared = [agree(prompts[slot], other) for other, holder in drawn if holder]
        assert tokens == (0 if holds[slot] else max(shared, default=0))


def documents(readers, length=400, rest=10):
    """Prompts of several documents: `readers` of each, a few tokens beside it."""
    texts = [np.arange(length) + 10_000 * (number + 1) for number in range(len(readers))]
    return [
        np.concatenate([text, np.full(rest, 7 + reader)])
        for text, count in zip(texts, readers, strict=True)
        for reader in range(count)
    ]


def begun(prompts, held, *, output=10, capacity=10_000, stream=False):
    lengths = np.array([len(prompt) for prompt in prompts])
    in_order = SortedPrompts.of(np.concatenate(prompts), np.concatenate([[0], np.cumsum(lengths)]))
    slots = in_order.slots
    tree = in_order.tree(lengths[slots], np.full(len(slots), output), llama_on_a100())
    result = np.zeros(len(slots), bool)
    result[slots] = begun_requests(tree, np.asarray(held)[slots], capacity, stream=stream)
    return result.tolist()


def test_readers_of_a_document_in_use_are_begun():
    assert begun(documents([3, 3]), [400] * 3 + [0] * 3) == [True] * 3 + [False] * 3


def test_a_prefix_of_which_little_is_in_use_is_not_begun():
    assert begun(documents([3, 3]), [150] * 3 + [0] * 3) == [False] * 6


def test_a_prefix_that_is_small_beside_the_cache_is_not_worth_a_detour():
    assert begun(documents([3, 3]), [400] * 3 + [0] * 3, capacity=400 * 64 + 64) == [False] * 6


def test_a_prefix_that_more_wait_for_than_it_holds_is_not_finished_first():
    """An instruction that many share: they would all go before whatever else there is."""
    assert not any(begun(documents([30]), [400] * 30))


def test_in_a_stream_a_document_in_use_goes_first_however_many_wait_for_it():
    """It would leave the cache behind them, and others will come who read it."""
    held = [400] * 30 + [0] * 3
    assert begun(documents([30, 3]), held, stream=True) == [True] * 30 + [False] * 3
    assert not any(begun(documents([30, 3]), [150] * 30 + [0] * 3, stream=True))
    assert not any(begun(documents([30, 3]), held, capacity=400 * 64 + 64, stream=True))


def test_the_last_reader_of_a_document_in_use_is_begun():
    assert begun(documents([1, 3]), [400] + [0] * 3) == [True] + [False] * 3


def test_a_document_below_a_common_instruction_is_begun_without_its_neighbours():
    instruction = np.arange(300) + 5
    prompts = [np.concatenate([instruction, prompt]) for prompt in documents([3, 3, 3], length=600)]
    assert begun(prompts, [900] * 3 + [300] * 6) == [True] * 3 + [False] * 6


def test_a_new_plan_goes_on_with_the_document_that_has_been_begun():
    """Others are denser, and others are sparser: it does not wait until half of the pool is done."""
    planner = planner_for(
        pool(documents([6] * 5), [400] * 6 + [200] * 6 + [40] * 6 + [8] * 6 + [4] * 6),
        kv_capacity=4_000,
        sample_fraction=0.0,
    )
    planner.replan()
    readers = set(range(12, 18))
    assert not readers & {*planner.order[:6].tolist(), *planner.order[-6:].tolist()}
    planner.admit(12)
    planner.replan()
    ends = planner.order[:5].tolist(), planner.order[-5:].tolist()
    assert readers - {12} in (set(ends[0]), set(ends[1]))


def test_what_is_held_is_no_work_for_the_first_of_its_readers():
    planner = planner_for(pool(documents([4]), 5), kv_capacity=4_000, sample_fraction=0.0)
    planner.replan()
    assert planner.ledger.scanner.order.new_tokens.tolist()[0] == 410
    planner.admit(planner.propose(1)[0])
    planner.replan()
    assert planner.ledger.scanner.order.new_tokens.tolist() == [10, 10, 10]

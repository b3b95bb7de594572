"""Stealing: whole subtrees that have not begun, nothing lost or doubled, no end later."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import llama_on_a100, pool, random_pool
from sglang.srt.blend.core.order.stealing import Backlog, steal

pools = st.builds(
    random_pool,
    seed=st.integers(0, 10**6),
    n=st.integers(1, 60),
    vocabulary=st.integers(1, 4),
    longest=st.integers(0, 10),
    stretch=st.sampled_from([1, 40]),
)
speeds = st.floats(0.1, 10.0)


def seconds(tree) -> float:
    return float((tree.comp - tree.saved + tree.mem).sum())


def alone(requests, tree_order, chosen) -> float:
    """Modelled seconds of some of a pool's sorted requests, which share among themselves only."""
    which = tree_order[chosen]
    return seconds(pool([requests.prompts[i] for i in which], requests.output[which]).tree())


@given(pools, st.integers(0, 10**6), speeds, speeds, st.floats(0.0, 1.0))
def test_no_end_is_later_and_nothing_is_lost(requests, seed, slow, fast, lead):
    tree, order = requests.tree(), requests.sorted().slots
    waits = np.random.default_rng(seed).random(len(requests)) < 0.7
    victim, thief = Backlog(seconds(tree), slow), Backlog(lead * seconds(tree), fast)
    theft = steal(tree, llama_on_a100(), waits, victim=victim, thief=thief)
    assert np.all(np.diff(theft.requests) > 0)
    assert np.all(waits[theft.requests])
    before = max(victim.end, thief.end)
    kept = np.setdiff1d(np.arange(len(requests)), theft.requests)
    # What was predicted is what the parts cost, or more.
    assert alone(requests, order, kept) <= theft.victim.seconds * (1 + 1e-9) + 1e-12
    added = alone(requests, order, theft.requests)
    assert thief.seconds + added <= theft.thief.seconds * (1 + 1e-9) + 1e-12
    assert max(theft.victim.end, theft.thief.end) <= before * (1 + 1e-9)
    if len(theft.requests):
        assert theft.victim.seconds < victim.seconds


@given(pools, st.integers(0, 10**6), speeds)
def test_subtrees_are_whole(requests, seed, speed):
    """What leaves a node whose prefix the thief did not pay for is all that hangs below it, or nothing."""
    tree, cost = requests.tree(), llama_on_a100()
    waits = np.random.default_rng(seed).random(len(requests)) < 0.7
    theft = steal(tree, cost, waits, victim=Backlog(seconds(tree), 1.0), thief=Backlog(0.0, speed))
    gone = np.zeros(len(requests), np.bool_)
    gone[theft.requests] = True
    torn = [
        cost.prefix_comp(tree.depth[node])
        for node in range(1, len(tree.depth))
        if 0 < gone[tree.lo[node] : tree.hi[node]].sum() < tree.hi[node] - tree.lo[node]
    ]
    assert max(torn, default=0.0) <= theft.again * (1 + 1e-9)


@given(pools)
def test_who_ends_first_gives_nothing(requests):
    tree = requests.tree()
    one = Backlog(seconds(tree))
    theft = steal(tree, llama_on_a100(), np.full(len(requests), True), victim=one, thief=one)
    assert (len(theft.requests), theft.victim, theft.thief) == (0, one, one)


def questions(documents, each, length=3000, output=20):
    return pool(
        [
            [*range(10_000 * d, 10_000 * d + length), 900_000 + q]
            for d in range(documents)
            for q in range(each)
        ],
        output,
    )


@pytest.mark.parametrize("speed", [1.0, 0.5, 2.0])
def test_documents_go_whole_and_both_end_together(speed):
    requests = questions(60, 5)
    tree = requests.tree()
    victim, thief = Backlog(seconds(tree), speed), Backlog(0.0)
    theft = steal(tree, llama_on_a100(), np.full(300, True), victim=victim, thief=thief)
    assert theft.again == 0.0
    documents = np.bincount(theft.requests // 5, minlength=60)
    assert set(documents.tolist()) == {0, 5}
    ends = theft.victim.end, theft.thief.end
    assert max(ends) <= 1.05 * victim.seconds / (1.0 + speed)


def test_a_document_that_has_begun_stays_as_long_as_there_are_others():
    requests = questions(10, 4)
    tree, waits = requests.tree(), np.full(40, True)
    waits[::4] = np.arange(10) < 5  # of the last five documents one question runs
    theft = steal(tree, llama_on_a100(), waits, victim=Backlog(seconds(tree)), thief=Backlog(0.0))
    assert theft.again == 0.0
    documents = np.bincount(theft.requests // 4, minlength=10)
    assert set(documents[:5].tolist()) == {0, 4}
    assert not documents[5:].any()


def test_a_prefix_that_costs_more_than_the_difference_is_not_computed_again():
    requests = questions(1, 8, output=2)
    tree, waits = requests.tree(), np.arange(8) > 0
    late = Backlog(seconds(tree))
    gain = float(tree.mem[1:].sum() + (tree.comp - tree.saved)[1:].sum())
    assert gain < llama_on_a100().prefix_comp(3000)
    theft = steal(tree, llama_on_a100(), waits, victim=late, thief=Backlog(late.seconds - gain))
    assert not len(theft.requests)


def test_one_long_request_goes_to_who_answers_it_sooner():
    requests = pool([[1] * 50, [2] * 50], [5000, 5000])
    tree = requests.tree()
    theft = steal(
        tree, llama_on_a100(), np.array([False, True]), victim=Backlog(seconds(tree), 0.5), thief=Backlog(0.0)
    )
    assert theft.requests.tolist() == [1]


def test_flags_of_another_length_are_an_error():
    with pytest.raises(ValueError, match="2 entries for 1"):
        steal(pool([[1]]).tree(), llama_on_a100(), np.full(2, True), victim=Backlog(1), thief=Backlog(0))

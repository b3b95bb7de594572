"""Totals and next use of ranges of sorted prompts against looking at every request."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import random_pool
from sglang.srt.blend.core.pool.pending_index import NEVER, PendingIndex
from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts
from sglang.srt.blend.core.pool.token_store import TokenStore

seeds = st.integers(0, 10**6)


class Case:
    """n requests of which some wait, indexed, and the same by slot."""

    def __init__(self, seed, n):
        self.rng = np.random.default_rng(seed)
        self.requests = random_pool(seed, n)
        self.requests.namespace[:] = self.rng.integers(0, 2, n)
        self.store = TokenStore()
        slots = self.store.put(self.requests.tokens, self.requests.offsets)
        self.prompts = SortedPrompts().insert(self.store, slots, self.requests.namespace)
        self.waiting = self.rng.random(n) < 0.5
        self.comp, self.mem = self.rng.random(n), self.rng.random(n)
        self.position = self.rng.permutation(n)
        order, self.index = self.prompts.slots, PendingIndex()
        self.index.rebuild(
            self.store,
            self.requests.namespace,
            order,
            waiting=self.waiting[order],
            comp=self.comp[order],
            mem=self.mem[order],
            position=self.position[order],
        )

    def users(self, path, namespace):
        """Waiting requests whose prompts begin with `path`."""
        return [
            slot
            for slot in np.flatnonzero(self.waiting)
            if self.requests.namespace[slot] == namespace
            and self.requests.prompts[slot][: len(path)].tolist() == path
        ]

    def next_use(self, path, namespace):
        return min(self.position[self.users(path, namespace)], default=NEVER)


@given(seeds, st.integers(0, 40), st.lists(st.integers(0, 2), max_size=4), st.integers(0, 1))
def test_totals_below_a_prefix_are_those_of_its_waiting_requests_after_any_changes(seed, n, path, namespace):
    case = Case(seed, n)
    lo, hi = case.index.narrow(*case.index.root(namespace), 0, np.array(path, np.int64))
    for slot in [*case.rng.permutation(n), n]:
        users = case.users(path, namespace)
        assert all(lo <= case.index.rank(user) < hi for user in users)
        totals = case.index.totals(lo, hi)
        assert totals.requests == len(users)
        assert totals.comp == pytest.approx(case.comp[users].sum())
        assert totals.mem == pytest.approx(case.mem[users].sum())
        assert totals.next_use == case.next_use(path, namespace)
        assert case.index.next_use(lo, hi) == totals.next_use
        assert case.index.next_use_many(np.array([lo]), np.array([hi])).tolist() == [totals.next_use]
        case.index._check()
        if slot < n:
            case.waiting[slot] = not case.waiting[slot]
            case.index.set_waiting(slot, case.waiting[slot])


@given(
    seeds, st.integers(0, 40), st.lists(st.integers(0, 2), min_size=1, max_size=6), st.sampled_from([1, 2])
)
def test_pages_used_sooner_are_those_that_have_a_nearer_use_than_the_whole(seed, n, path, page):
    case = Case(seed, n)
    path = path[: len(path) // page * page]
    whole = case.next_use(path, 0)
    sooner = [k for k in range(1, len(path) // page) if case.next_use(path[: k * page], 0) < whole]
    lo, hi = case.index.root(0)
    assert case.index.used_sooner(lo, hi, 0, np.array(path, np.int64), whole, page) == max(sooner, default=0)


def test_ranges_hold_until_the_next_rebuild_and_totals_until_the_next_change():
    case = Case(0, 10)
    epoch, version = case.index.epoch, case.index.version
    slot = int(np.flatnonzero(case.waiting)[0])
    case.index.set_waiting(slot, True)
    assert (case.index.epoch, case.index.version) == (epoch, version)
    case.index.set_waiting(slot, False)
    assert case.index.epoch == epoch
    assert case.index.version > version
    arrays = dict.fromkeys(("comp", "mem"), np.zeros(10))
    case.index.rebuild(
        case.store,
        case.requests.namespace,
        case.prompts.slots,
        waiting=np.zeros(10, np.bool_),
        position=np.zeros(10, np.int64),
        **arrays,
    )
    assert case.index.epoch > epoch


def test_a_request_that_is_not_indexed_yet_is_ignored():
    case = Case(0, 10)
    version = case.index.version
    assert case.index.rank(10) == -1
    case.index.set_waiting(10, True)
    assert case.index.version == version


@pytest.mark.parametrize("array", ["_counts", "_seconds", "_first", "_rank"])
def test_the_check_sees_what_is_wrong(array):
    case = Case(0, 10)
    case.index._check()
    getattr(case.index, array)[1] += 1
    with pytest.raises(AssertionError):
        case.index._check()

"""A prefix that several requests of one step share is computed by one of them (paper A.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from sglang.srt.blend.core.pool.request_table import RequestTable, State

WORTH_A_STEP = 32
"""Tokens that a request must share with a leader to be held back: computing fewer costs less than the
step's delay (upstream's in-batch prefix check uses the same number). Where another request takes the
place in the step there is no delay, and one token is worth waiting for; where many wait for the same few
tokens, all of these count."""

CACHE_SHARE = 64
"""A prefix of less than one part in so many of the KV capacity is cheap to keep, or to compute again: it may
be left behind or cut, samples may share it, and its readers may wait for company."""

_COMPUTING = np.array([State.RUNNING, State.FINISHED], np.int8)


@njit(cache=True)
def _common(data, start, one, other, most):  # type: ignore[no-untyped-def]
    """Tokens with which the prompts of both slots begin, `most` at most."""
    i = 0
    while i < most and data[start[one] + i] == data[start[other] + i]:
        i += 1
    return i


@njit(cache=True)
def _longest(data, start, length, space, state, computing, leaders, slot, most):  # type: ignore[no-untyped-def]
    """Tokens with which a prompt and that of a leader begin, `most` at most; 0 without a leader."""
    longest = 0
    for leader in leaders:
        if leader == slot or space[leader] != space[slot]:
            continue
        if state[leader] == computing[0] or state[leader] == computing[1]:
            longest = max(longest, _common(data, start, leader, slot, min(most, length[leader])))
    return longest


@njit(cache=True)
def _begin_alike(data, start, length, space, slots, slot, tokens):  # type: ignore[no-untyped-def]
    """How many of these slots, among them this one, begin with as many of its tokens."""
    alike = 0
    for other in slots:
        if space[other] == space[slot] and length[other] >= tokens:
            alike += _common(data, start, other, slot, tokens) == tokens
    return alike


class PrefixLeaders:
    """The requests that compute a prefix for others, in this step and the last ones.

    A leader's KV is in the cache when its prefill has been processed: one step later, or two where the
    scheduler works ahead of the device. Nobody waits longer than that, so nobody starves. Prompts are
    compared as a whole, since what is cached may differ between a leader's look at it and a follower's.

    Args:
        table: the requests and their prompts.
        lag: steps until a leader's KV can be matched, 1 or more.

    Attributes:
        lag: as given.

    Raises:
        ValueError: the lag is below 1.
    """

    def __init__(self, table: RequestTable, lag: int = 1) -> None:
        if lag < 1:
            raise ValueError(f"lag {lag}: a leader's KV can be matched one step later at the earliest")
        self._table = table
        self._slots = np.zeros(64, np.int64)  # of the leaders, oldest first
        self._counts = [0] * lag  # of them in each step, oldest first
        self.lag = lag

    def next_step(self) -> None:
        """A new step begins; the oldest leaders' KV can be matched now."""
        gone, count = self._counts.pop(0), sum(self._counts)
        self._slots[:count] = self._slots[gone : gone + count].copy()
        self._counts.append(0)

    def lead(self, slot: int) -> None:
        """A request computes its prompt, or a part of it, in this step."""
        count = sum(self._counts)
        if count == len(self._slots):
            self._slots = np.append(self._slots, np.zeros_like(self._slots))
        self._slots[count] = slot
        self._counts[-1] += 1

    def shared(self, slot: int, cached: int) -> int:
        """Tokens of a request's prompt that a leader computes, or has in KV that it holds.

        Args:
            cached: prompt tokens that the request need not compute; those that are counted come behind. The
                last one of all is computed always, cached or not.
        """
        table, leaders = self._table, self._slots[: sum(self._counts)]
        store = table.store
        most = store.length.item(slot) - (table.generated.item(slot) == 0)
        if not len(leaders) or most <= cached:
            return 0
        columns = store.data, store.start, store.length, table.space
        return max(int(_longest(*columns, table.state, _COMPUTING, leaders, slot, most)) - cached, 0)

    def followers(self, slots: Sequence[int], slot: int, tokens: int) -> int:
        """How many of these waiting requests, among them one, begin with as many tokens of its prompt."""
        table, store = self._table, self._table.store
        waiting = np.array(slots, np.int64)
        waiting = waiting[table.state[waiting] == State.WAITING]
        columns = store.data, store.start, store.length, table.space
        return int(_begin_alike(*columns, waiting, slot, tokens))

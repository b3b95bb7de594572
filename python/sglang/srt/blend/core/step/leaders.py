"""A prefix that several requests of one step share is computed by one of them (paper A.2)."""

from __future__ import annotations

import numpy as np
from numba import njit

from sglang.srt.blend.core.pool.request_table import RequestTable, State

WORTH_A_STEP = 32
"""Tokens that a request must share with a leader to be held back: computing fewer costs less than the
step's delay (upstream's in-batch prefix check uses the same number). Where another request takes the
place in the step there is no delay, and one token is worth waiting for."""

_COMPUTING = np.array([State.RUNNING, State.FINISHED], np.int8)


@njit(cache=True)
def _led(data, start, length, space, state, computing, leaders, slot, until):  # type: ignore[no-untyped-def]
    """Whether a leader other than the request begins with the first `until` tokens of its prompt."""
    for leader in leaders:
        if leader == slot or length[leader] < until or space[leader] != space[slot]:
            continue
        if state[leader] != computing[0] and state[leader] != computing[1]:
            continue
        one, other = start[leader], start[slot]
        same = data[one + until - 1] == data[other + until - 1]
        i = 0
        while same and i < until:
            same = data[one + i] == data[other + i]
            i += 1
        if same:
            return True
    return False


class PrefixLeaders:
    """The requests that compute a prefix for others, in this step and the last ones.

    A leader's KV is in the cache when its prefill has been processed: one step later, or two where the
    scheduler works ahead of the device. Nobody waits longer than that, so nobody starves. Prompts are
    compared as a whole, since what is cached may differ between a leader's look at it and a follower's.

    Args:
        table: the requests and their prompts.
        lag: steps until a leader's KV can be matched, 1 or more.

    Raises:
        ValueError: the lag is below 1.
    """

    def __init__(self, table: RequestTable, lag: int = 1) -> None:
        if lag < 1:
            raise ValueError(f"lag {lag}: a leader's KV can be matched one step later at the earliest")
        self._table = table
        self._slots = np.zeros(64, np.int64)  # of the leaders, oldest first
        self._counts = [0] * lag  # of them in each step, oldest first

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

    def compute(self, slot: int, cached: int, tokens: int) -> bool:
        """Whether a leader computes so many tokens of a request's prompt, or has them in KV that it holds.

        Args:
            cached: prompt tokens that the request need not compute; the tokens are those behind them. The
                last one is computed always, cached or not.
        """
        table, until = self._table, cached + tokens
        store, leaders = table.store, self._slots[: sum(self._counts)]
        most = store.length.item(slot) - (table.generated.item(slot) == 0)
        if not len(leaders) or not 0 < until <= most:
            return False
        return bool(
            _led(
                store.data,
                store.start,
                store.length,
                table.space,
                table.state,
                _COMPUTING,
                leaders,
                slot,
                until,
            )
        )

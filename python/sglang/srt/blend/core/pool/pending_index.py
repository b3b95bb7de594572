"""Range queries over sorted prompts: what is still waiting below any prefix.

A node of the runtime radix tree covers a contiguous range of the planner's sorted prompts, so its
annotations are sums over that range. A segment tree keeps them exact while requests are admitted,
retracted and aborted; each query and update costs O(log n).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sglang.srt.blend.core.pool import prefix_sort
from sglang.srt.blend.core.pool.token_store import TokenStore

#: Next use of a prefix that no planned request needs.
NEVER = 2**62


class Totals(NamedTuple):
    """Waiting requests of a range.

    Attributes:
        requests: how many.
        comp, mem: their seconds, each request alone.
        next_use: smallest plan position among them, NEVER when there are none.
    """

    requests: int
    comp: float
    mem: float
    next_use: int


@njit(cache=True)
def _build(size, waiting, comp, mem, place):  # type: ignore[no-untyped-def]
    counts = np.zeros(2 * size, np.int64)
    seconds = np.zeros((2 * size, 2), np.float64)
    first = np.full(2 * size, NEVER, np.int64)
    for i in range(len(waiting)):
        if waiting[i]:
            counts[size + i] = 1
            seconds[size + i, 0], seconds[size + i, 1] = comp[i], mem[i]
            first[size + i] = place[i]
    for i in range(size - 1, 0, -1):
        counts[i] = counts[2 * i] + counts[2 * i + 1]
        seconds[i] = seconds[2 * i] + seconds[2 * i + 1]
        first[i] = min(first[2 * i], first[2 * i + 1])
    return counts, seconds, first


@njit(cache=True)
def _set(counts, seconds, first, size, position, waiting, comp, mem, place):  # type: ignore[no-untyped-def]
    i = size + position
    counts[i] = 1 if waiting else 0
    seconds[i, 0] = comp if waiting else 0.0
    seconds[i, 1] = mem if waiting else 0.0
    first[i] = place if waiting else NEVER
    i //= 2
    while i > 0:
        counts[i] = counts[2 * i] + counts[2 * i + 1]
        seconds[i, 0] = seconds[2 * i, 0] + seconds[2 * i + 1, 0]
        seconds[i, 1] = seconds[2 * i, 1] + seconds[2 * i + 1, 1]
        first[i] = min(first[2 * i], first[2 * i + 1])
        i //= 2


@njit(cache=True)
def _query(counts, seconds, first, size, lo, hi):  # type: ignore[no-untyped-def]
    requests, comp, mem, next_use = np.int64(0), 0.0, 0.0, np.int64(NEVER)
    a, b = lo + size, hi + size
    while a < b:
        if a & 1:
            requests += counts[a]
            comp += seconds[a, 0]
            mem += seconds[a, 1]
            next_use = min(next_use, first[a])
            a += 1
        if b & 1:
            b -= 1
            requests += counts[b]
            comp += seconds[b, 0]
            mem += seconds[b, 1]
            next_use = min(next_use, first[b])
        a //= 2
        b //= 2
    return requests, comp, mem, next_use


@njit(cache=True)
def _first(first, size, lo, hi):  # type: ignore[no-untyped-def]
    found = np.int64(NEVER)
    a, b = lo + size, hi + size
    while a < b:
        if a & 1:
            found = min(found, first[a])
            a += 1
        if b & 1:
            b -= 1
            found = min(found, first[b])
        a //= 2
        b //= 2
    return found


@njit(cache=True)
def _first_many(first, size, lo, hi):  # type: ignore[no-untyped-def]
    found = np.empty(len(lo), np.int64)
    for i in range(len(lo)):
        found[i] = _first(first, size, lo[i], hi[i])
    return found


@njit(cache=True)
def _sooner(data, start, length, order, first, size, lo, hi, depth, tokens, use, page):  # type: ignore[no-untyped-def]
    """Pages at the beginning of `tokens` that are used before `use`; next use only grows along the path."""
    if _first(first, size, lo, hi) >= use:
        return 0
    low, high = 0, len(tokens) // page  # the end of all of them is used at `use`
    while high - low > 1:
        middle = (low + high) // 2
        begin, end = prefix_sort.narrow(data, start, length, order, lo, hi, depth, tokens[: middle * page])
        if _first(first, size, begin, end) < use:
            low = middle
        else:
            high = middle
    return low


class PendingIndex:
    """Order statistics of the planner's sorted prompts.

    Positions are places in lexicographic order. They hold until `epoch` changes, which happens when
    prompts are inserted or dropped; a range that an older epoch gave must be asked for again.

    Attributes:
        epoch: changes whenever positions shift.
        version: changes with every update; totals read at an equal version are still true.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.version = 0
        self._store = TokenStore()
        self._space = np.zeros(0, np.int32)
        self._order = np.zeros(0, np.int64)
        self._position = np.zeros(0, np.int64)
        self._comp = np.zeros(0)
        self._mem = np.zeros(0)
        self._place = np.zeros(0, np.int64)
        self._size = 1
        self._counts, self._seconds, self._first = _build(
            1, np.zeros(0, np.bool_), self._comp, self._mem, self._place
        )

    def rebuild(
        self,
        store: TokenStore,
        space: NDArray[np.int32],
        order: NDArray[np.int64],
        *,
        waiting: NDArray[np.bool_],
        comp: NDArray[np.float64],
        mem: NDArray[np.float64],
        place: NDArray[np.int64],
    ) -> None:
        """Index new sorted prompts; arrays besides `store` and `space` follow `order`, (n,)."""
        self.epoch += 1
        self.version += 1
        self._store, self._space, self._order = store, space, order
        self._position = np.full(store.num_slots, -1, np.int64)
        self._position[order] = np.arange(len(order))
        self._comp, self._mem, self._place = comp, mem, place
        self._size = 1 << max(len(order) - 1, 0).bit_length()
        self._counts, self._seconds, self._first = _build(self._size, waiting, comp, mem, place)

    def set_waiting(self, slot: int, waiting: bool) -> None:
        """A request left the queue, or came back to it. Unknown slots are ignored."""
        position = self.position(slot)
        if position < 0 or self._counts[self._size + position] == waiting:
            return
        self.version += 1
        _set(
            self._counts,
            self._seconds,
            self._first,
            self._size,
            position,
            waiting,
            self._comp[position],
            self._mem[position],
            self._place[position],
        )

    def is_waiting(self, slot: int) -> bool:
        """Whether a request is indexed as one that waits."""
        position = self.position(slot)
        return position >= 0 and bool(self._counts[self._size + position])

    def position(self, slot: int) -> int:
        """Place of a request in sorted order, -1 when it is not indexed yet."""
        return int(self._position[slot]) if slot < len(self._position) else -1

    def root(self, namespace: int) -> tuple[int, int]:
        """Range [lo, hi) of a namespace's prompts."""
        spaces = _SpaceView(self._space, self._order)
        return spaces.first_not_below(namespace), spaces.first_not_below(namespace + 1)

    def narrow(self, lo: int, hi: int, depth: int, tokens: NDArray[np.int32]) -> tuple[int, int]:
        """Sub-range of [lo, hi), whose prompts agree on `depth` tokens, that goes on with `tokens`."""
        if lo >= hi:
            return lo, lo
        store = self._store
        low, high = prefix_sort.narrow(
            store.data, store.start, store.length, self._order, lo, hi, depth, tokens
        )
        return int(low), int(high)

    def totals(self, lo: int, hi: int) -> Totals:
        """Sums over the waiting requests of [lo, hi)."""
        return Totals(*_query(self._counts, self._seconds, self._first, self._size, lo, hi))

    def next_use(self, lo: int, hi: int) -> int:
        """`totals(lo, hi).next_use`."""
        return int(_first(self._first, self._size, lo, hi))

    def used_sooner(
        self, lo: int, hi: int, depth: int, tokens: NDArray[np.int32], use: int, page: int
    ) -> int:
        """How many whole pages of `tokens`, less than all, requests of [lo, hi) need before `use`.

        Args:
            lo, hi: requests that agree on `depth` tokens.
            use: next use of those that go on with all of `tokens`.
        """
        store = self._store
        return int(
            _sooner(
                store.data,
                store.start,
                store.length,
                self._order,
                self._first,
                self._size,
                lo,
                hi,
                depth,
                tokens,
                use,
                page,
            )
        )

    def next_use_many(self, lo: NDArray[np.int64], hi: NDArray[np.int64]) -> NDArray[np.int64]:
        """`totals(lo, hi).next_use` of many ranges at once; arrays of equal length."""
        found: NDArray[np.int64] = _first_many(self._first, self._size, lo, hi)
        return found


class _SpaceView:
    """Binary search over the namespaces of sorted slots without gathering them."""

    def __init__(self, space: NDArray[np.int32], order: NDArray[np.int64]) -> None:
        self._space, self._order = space, order

    def first_not_below(self, namespace: int) -> int:
        lo, hi = 0, len(self._order)
        while lo < hi:
            middle = (lo + hi) // 2
            if self._space[self._order[middle]] < namespace:
                lo = middle + 1
            else:
                hi = middle
        return lo

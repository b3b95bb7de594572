"""Range queries over sorted prompts: what is still waiting below any prefix (paper 5.1).

A node of the runtime radix tree covers a contiguous range of the planner's sorted prompts, so its
annotations are sums over that range. A segment tree keeps them exact while requests are admitted,
retracted and aborted; each query and update costs O(log n).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sglang.srt.blend.core.pool import prefix_sort
from sglang.srt.blend.core.pool.token_store import TokenStore

NEVER = 2**62
"""Next use of a prefix that no waiting request needs."""


class Totals(NamedTuple):
    """Totals of the requests of a range that wait.

    Attributes:
        requests: how many wait.
        comp, mem: their compute and memory seconds, as if they shared nothing.
        next_use: smallest position in the plan among them, `NEVER` when none waits.
    """

    requests: int
    comp: float
    mem: float
    next_use: int


@njit(cache=True)
def _build(size, waiting, comp, mem, position):  # type: ignore[no-untyped-def]
    counts = np.zeros(2 * size, np.int64)
    seconds = np.zeros((2 * size, 2), np.float64)
    first = np.full(2 * size, NEVER, np.int64)
    for i in range(len(waiting)):
        if waiting[i]:
            counts[size + i] = 1
            seconds[size + i, 0], seconds[size + i, 1] = comp[i], mem[i]
            first[size + i] = position[i]
    for i in range(size - 1, 0, -1):
        counts[i] = counts[2 * i] + counts[2 * i + 1]
        seconds[i] = seconds[2 * i] + seconds[2 * i + 1]
        first[i] = min(first[2 * i], first[2 * i + 1])
    return counts, seconds, first


@njit(cache=True)
def _set(counts, seconds, first, size, rank, waiting, comp, mem, position):  # type: ignore[no-untyped-def]
    i = size + rank
    counts[i] = 1 if waiting else 0
    seconds[i, 0] = comp if waiting else 0.0
    seconds[i, 1] = mem if waiting else 0.0
    first[i] = position if waiting else NEVER
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
    """Totals and next use of any range of the planner's sorted prompts, exact after every event.

    Ranges [lo, hi) are of ranks, a prompt's index in lexicographic order. Ranks hold until `epoch` changes,
    which happens when prompts are inserted or dropped; a range that an older epoch gave must be asked for
    again.

    Attributes:
        epoch: changes whenever ranks shift.
        version: changes with every update; totals read at an equal version are still true.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.version = 0
        self._store = TokenStore()
        self._space = np.zeros(0, np.int32)
        self._order = np.zeros(0, np.int64)
        self._rank = np.zeros(0, np.int64)  # by slot
        self._comp = np.zeros(0)
        self._mem = np.zeros(0)
        self._position = np.zeros(0, np.int64)
        self._size = 1
        self._counts, self._seconds, self._first = _build(
            1, np.zeros(0, np.bool_), self._comp, self._mem, self._position
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
        position: NDArray[np.int64],
    ) -> None:
        """Index sorted prompts anew, O(n).

        Args:
            store: holds the prompts; space: their namespaces, by slot.
            order: (n,) slots in sorted order, all that may be asked for; the arrays that follow go along.
            waiting: (n,) which of them wait.
            comp, mem: (n,) compute and memory seconds of each request as if it shared nothing.
            position: (n,) index in the plan's order.
        """
        self.epoch += 1
        self.version += 1
        self._store, self._space, self._order = store, space, order
        self._rank = np.full(store.num_slots, -1, np.int64)
        self._rank[order] = np.arange(len(order))
        self._comp, self._mem, self._position = comp, mem, position
        self._size = 1 << max(len(order) - 1, 0).bit_length()
        self._counts, self._seconds, self._first = _build(self._size, waiting, comp, mem, position)

    def set_waiting(self, slot: int, waiting: bool) -> None:
        """A request left the queue, or came back to it; one that is not indexed yet is ignored. O(log n)."""
        rank = self.rank(slot)
        if rank < 0 or self._counts[self._size + rank] == waiting:
            return
        self.version += 1
        _set(
            self._counts,
            self._seconds,
            self._first,
            self._size,
            rank,
            waiting,
            self._comp[rank],
            self._mem[rank],
            self._position[rank],
        )

    def is_waiting(self, slot: int) -> bool:
        """Whether a request is indexed as one that waits."""
        rank = self.rank(slot)
        return rank >= 0 and bool(self._counts[self._size + rank])

    def rank(self, slot: int) -> int:
        """Index of a request among the sorted prompts, -1 when it is not indexed yet."""
        return int(self._rank[slot]) if slot < len(self._rank) else -1

    def root(self, namespace: int) -> tuple[int, int]:
        """Range [lo, hi) of a namespace's prompts, O(log n)."""
        order, space = self._order, self._space.item
        return bisect_left(order, namespace, key=space), bisect_left(order, namespace + 1, key=space)

    def narrow(self, lo: int, hi: int, depth: int, tokens: NDArray[np.int32]) -> tuple[int, int]:
        """The part of a range whose prompts go on with certain tokens, O(log n) comparisons.

        Args:
            lo, hi: a range whose prompts agree on their first `depth` tokens.
            tokens: int32, what follows; a prompt that ends inside them is left out.

        Returns:
            (lo, hi) of the part; equal where it is empty.
        """
        if lo >= hi:
            return lo, lo
        store = self._store
        low, high = prefix_sort.narrow(
            store.data, store.start, store.length, self._order, lo, hi, depth, tokens
        )
        return int(low), int(high)

    def totals(self, lo: int, hi: int) -> Totals:
        """Totals of the waiting requests of [lo, hi), O(log n)."""
        return Totals(*_query(self._counts, self._seconds, self._first, self._size, lo, hi))

    def next_use(self, lo: int, hi: int) -> int:
        """Smallest position in the plan of a waiting request of [lo, hi), `NEVER` when none waits."""
        return int(_first(self._first, self._size, lo, hi))

    def used_sooner(
        self, lo: int, hi: int, depth: int, tokens: NDArray[np.int32], use: int, page: int
    ) -> int:
        """How many whole pages at the beginning of `tokens`, less than all, are needed before `use`.

        Args:
            lo, hi: a range whose prompts agree on their first `depth` tokens.
            tokens: int32, what follows in those that go on.
            use: next use of those that go on with all of `tokens`, a position in the plan.
            page: tokens of a page.
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
        """`next_use` of many ranges at once; `lo`, `hi` and the result are (ranges,)."""
        found: NDArray[np.int64] = _first_many(self._first, self._size, lo, hi)
        return found

    def _check(self) -> None:
        """AssertionError unless ranks invert the order and every inner node totals its two children."""
        n = len(self._order)
        assert np.array_equal(self._rank[self._order], np.arange(n))
        assert np.count_nonzero(self._rank >= 0) == n
        leaves = slice(self._size, self._size + n)
        waiting = self._counts[leaves] == 1
        assert np.array_equal(self._counts[leaves], waiting)
        assert np.array_equal(self._seconds[leaves, 0], np.where(waiting, self._comp, 0.0))
        assert np.array_equal(self._seconds[leaves, 1], np.where(waiting, self._mem, 0.0))
        assert np.array_equal(self._first[leaves], np.where(waiting, self._position, NEVER))
        left, right = slice(2, None, 2), slice(3, None, 2)
        inner = slice(1, self._size)
        assert np.array_equal(self._counts[inner], self._counts[left] + self._counts[right])
        assert np.array_equal(self._seconds[inner], self._seconds[left] + self._seconds[right])
        assert np.array_equal(self._first[inner], np.minimum(self._first[left], self._first[right]))

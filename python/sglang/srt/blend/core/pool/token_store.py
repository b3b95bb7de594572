"""Prompts of a pool as one flat token array; requests are small integers (slots) into it.

A pool of 400,000 requests is three arrays instead of 400,000 lists.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
Slots = NDArray[np.int64]

# Tokens of dropped prompts that are not worth reclaiming.
_SLACK_TOKENS = 4096


class TokenStore:
    """Token ids of all prompts, back to back.

    >>> store = TokenStore()
    >>> store.put(np.array([7, 8, 9, 5], np.int32), np.array([0, 3, 4])).tolist()
    [0, 1]
    >>> store.prompt(0).tolist()
    [7, 8, 9]

    A slot is reused after `drop`; the tokens of dropped prompts are reclaimed when they outweigh the
    live ones. A first bulk `put` adopts the caller's array without a copy.

    Attributes:
        data: int32 (capacity,), the tokens; read-only outside.
        start, length: int64 (slots,), where a slot's prompt lies in `data`.

    >>> store = TokenStore()
    >>> store.put(np.array([5, 6, 7], np.int32), np.array([0, 1, 3])).tolist()
    [0, 1]
    >>> store.prompt(1).tolist()
    [6, 7]
    """

    def __init__(self) -> None:
        self.data: Tokens = np.empty(0, np.int32)
        self.start: Slots = np.empty(0, np.int64)
        self.length: Slots = np.empty(0, np.int64)
        self._used = 0
        self._dead = 0
        self._free: list[int] = []
        self._live = np.empty(0, np.bool_)

    @property
    def num_slots(self) -> int:
        """Slots handed out so far, dropped ones included: the length that arrays by slot need."""
        return len(self.start)

    def put(self, tokens: Tokens, offsets: Slots) -> Slots:
        """Store n prompts; their slots, int64 (n,).

        Args:
            tokens: int32, all prompts back to back.
            offsets: int64 (n + 1,), prompt i is tokens[offsets[i]:offsets[i + 1]].

        Raises:
            ValueError: offsets do not ascend from 0 to len(tokens).
        """
        offsets = np.asarray(offsets, np.int64)
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(tokens) or np.any(np.diff(offsets) < 0):
            raise ValueError(f"offsets must ascend from 0 to {len(tokens)}")
        tokens = np.ascontiguousarray(tokens, np.int32)
        if self._used == 0:
            self.data = tokens
        else:
            self._reserve(len(tokens))
            self.data[self._used : self._used + len(tokens)] = tokens
        slots = self._new_slots(len(offsets) - 1)
        self.start[slots] = self._used + offsets[:-1]
        self.length[slots] = np.diff(offsets)
        self._live[slots] = True
        self._used += len(tokens)
        return slots

    def drop(self, slots: Slots) -> None:
        """Forget the prompts of `slots`, (k,); their slots may be handed out again."""
        slots = np.atleast_1d(np.asarray(slots, np.int64))
        self._dead += int(self.length[slots].sum())
        self._live[slots] = False
        self._free.extend(slots.tolist()[::-1])
        if self._wasteful:
            self._compact()

    def prompt(self, slot: int) -> Tokens:
        """Token ids of one prompt, int32 (length,): a view that holds until the next `put` or `drop`."""
        begin = self.start[slot]
        return self.data[begin : begin + self.length[slot]]

    @property
    def _wasteful(self) -> bool:
        return self._dead > _SLACK_TOKENS and 2 * self._dead > self._used

    def _check(self) -> None:
        """AssertionError unless live prompts lie apart from each other and little lies between them."""
        live = np.flatnonzero(self._live)
        order = live[np.argsort(self.start[live], kind="stable")]
        order = order[self.length[order] > 0]
        ends = self.start[order] + self.length[order]
        assert np.all(ends[:-1] <= self.start[order][1:])
        assert not len(ends) or ends[-1] <= self._used <= len(self.data)
        assert self._used == self._dead + int(self.length[live].sum())
        assert not self._wasteful
        assert sorted([*live.tolist(), *self._free]) == list(range(self.num_slots))

    def _new_slots(self, count: int) -> Slots:
        reused = min(count, len(self._free))
        slots = np.empty(count, np.int64)
        for i in range(reused):
            slots[i] = self._free.pop()
        fresh = count - reused
        if fresh:
            first = self.num_slots
            slots[reused:] = np.arange(first, first + fresh)
            self.start = np.concatenate([self.start, np.zeros(fresh, np.int64)])
            self.length = np.concatenate([self.length, np.zeros(fresh, np.int64)])
            self._live = np.concatenate([self._live, np.zeros(fresh, np.bool_)])
        return slots

    def _reserve(self, extra: int) -> None:
        needed = self._used + extra
        if needed > len(self.data):
            grown = np.empty(max(needed, 2 * len(self.data), 1024), np.int32)
            grown[: self._used] = self.data[: self._used]
            self.data = grown
        elif not self.data.flags.writeable:
            self.data = self.data.copy()

    def _compact(self) -> None:
        live = np.flatnonzero(self._live)
        order = live[np.argsort(self.start[live], kind="stable")]
        lengths = self.length[order]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        # Token j of the packed array comes from j, shifted by how far its prompt moves.
        taken = np.arange(starts[-1]) + np.repeat(self.start[order] - starts[:-1], lengths)
        packed = np.empty(max(int(starts[-1]), 1024), np.int32)
        packed[: starts[-1]] = self.data[taken]
        self.data = packed
        self.start[order] = starts[:-1]
        self._used, self._dead = int(starts[-1]), 0

"""Prompts in lexicographic order: all that the prefix tree is made of (paper 5.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.pool import prefix_sort
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree, build_tree
from sglang.srt.blend.core.pool.token_store import TokenStore

Ints = NDArray[np.int64]


def _none() -> Ints:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class SortedPrompts:
    """Requests sorted by namespace and prompt, and the prefix that each has in common with the one before it.

    A node of the prefix tree is a run of neighbours, so any subset of sorted prompts has its tree in one
    pass. Operations return new objects; the arrays are never written.

    Attributes:
        slots: (n,) requests. Equal prompts stand in order of their slots.
        common: (n,) tokens that each prompt shares with the one before it; 0 across namespaces.

    >>> prompts = SortedPrompts.of([7, 8, 5, 6, 7, 8, 9], [0, 2, 4, 7])
    >>> prompts.slots.tolist(), prompts.common.tolist()
    ([1, 0, 2], [0, 0, 2])
    >>> prompts.drop([0]).common.tolist()
    [0, 0]
    """

    slots: Ints = field(default_factory=_none)
    common: Ints = field(default_factory=_none)

    @classmethod
    def of(
        cls, tokens: ArrayLike, offsets: ArrayLike, namespace: NDArray[np.int32] | None = None
    ) -> SortedPrompts:
        """Sort a pool; slots are the requests' indices. Arguments as of `TokenStore.put` and `insert`."""
        store = TokenStore()
        slots = store.put(np.asarray(tokens, np.int32), np.asarray(offsets, np.int64))
        return cls().insert(store, slots, namespace)

    def __len__(self) -> int:
        return len(self.slots)

    def insert(
        self, store: TokenStore, slots: Ints, namespace: NDArray[np.int32] | None = None
    ) -> SortedPrompts:
        """Take in more requests; O(n + m log n) token comparisons for m of them.

        Args:
            store: holds the prompts of these and of all that are sorted already.
            slots: (m,) in any order.
            namespace: by slot; requests of different ones share nothing. One for all by default.
        """
        if not len(slots):
            return self
        if namespace is None:
            namespace = np.zeros(store.num_slots, np.int32)
        prompts = store.data, store.start, store.length, namespace
        arrivals = prefix_sort.sort_prompts(*prompts, slots)
        return SortedPrompts(*prefix_sort.merge_sorted(*prompts, self.slots, self.common, arrivals))

    def subset(self, kept: NDArray[np.bool_]) -> SortedPrompts:
        """The requests whose flag (n,) is set; across those left out, the common prefix is the shortest."""
        return SortedPrompts(*prefix_sort.remove_sorted(self.slots, self.common, kept))

    def drop(self, slots: ArrayLike) -> SortedPrompts:
        """All but these requests; slots that are not among them are ignored."""
        gone = np.asarray(slots, np.int64)
        if not len(gone) or not len(self):
            return self
        keep = np.ones(int(max(self.slots.max(), gone.max())) + 1, np.bool_)
        keep[gone] = False
        return self.subset(keep[self.slots])

    def tree(
        self, prompt: Ints, output: Ints, cost_model: CostModel, **options: Any
    ) -> ResourceAwarePrefixTree:
        """The prefix tree of the requests; see `build_tree`.

        Args:
            prompt, output: (n,) tokens, in the order of `slots`.
        """
        return build_tree(self.common, prompt, output, cost_model, **options)

    def _check(self, store: TokenStore, namespace: NDArray[np.int32] | None = None) -> None:
        """The order and the common prefixes equal those of a plain sort, token by token."""
        if namespace is None:
            namespace = np.zeros(store.num_slots, np.int32)
        keys = [(int(namespace[s]), store.prompt(s).tolist(), s) for s in self.slots.tolist()]
        assert keys == sorted(keys)
        for i, (space, prompt, _) in enumerate(keys):
            before = keys[i - 1] if i else (space, [], -1)
            agree = 0
            for a, b in zip(prompt, before[1], strict=False):
                if a != b or space != before[0]:
                    break
                agree += 1
            assert self.common[i] == agree

"""The pool in sorted order, through arrivals and departures."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree
from sglang.srt.blend.core.pool.request_table import RequestTable, State
from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts

Ints = NDArray[np.int64]

_MAX_GONE = 4096
"""Departures after which the sorted prompts are compacted even if nobody asks for a plan."""


class SortedPool:
    """Waiting, running and remembered requests, sorted by prompt.

    Arrivals and departures cost a copy of the arrays, so they are taken in together, by `refresh`.

    Args:
        table: of the requests; their slots are free for others once a departure was taken in.
        memory: finished requests that are remembered, so that their answers inform their neighbours.

    Attributes:
        prompts: as of the last `refresh`.
    """

    def __init__(self, table: RequestTable, memory: int) -> None:
        self.prompts = SortedPrompts()
        self._table, self._memory = table, memory
        self._arrivals: list[Ints] = []
        self._gone: list[int] = []
        self._remembered: deque[int] = deque()

    def arrive(self, slots: Ints) -> None:
        """Requests (n,) are in the table and wait."""
        self._arrivals.append(slots)

    def leave(self, slot: int) -> None:
        """A request has left for good; if its answer was observed, it is remembered for a while."""
        if self._table.observed.item(slot) >= 0 and self._memory:
            self._table.state[slot] = State.FINISHED
            self._remembered.append(slot)
            if len(self._remembered) <= self._memory:
                return
            slot = self._remembered.popleft()
        self._table.state[slot] = State.ABSENT
        self._gone.append(slot)

    def open_tree(self, cost: CostModel) -> tuple[Ints, ResourceAwarePrefixTree]:
        """Slots of all that waits or runs, sorted by prompt, and their tree at estimated lengths."""
        state = self._table.state[self.prompts.slots]
        prompts = self.prompts.subset((state == State.WAITING) | (state == State.RUNNING))
        slots, table = prompts.slots, self._table
        output = np.maximum(table.estimate[slots], 1)
        return slots, prompts.tree(table.store.length[slots], output, cost, extra_comp=table.extra[slots])

    @property
    def crowded(self) -> bool:
        """Whether so many have left that it is time to compact."""
        return len(self._gone) >= max(_MAX_GONE, len(self.prompts) // 2)

    def refresh(self) -> bool:
        """Take in arrivals and departures; whether there were any."""
        if not self._arrivals and not self._gone:
            return False
        table, gone = self._table, self._gone
        arrivals = np.concatenate([np.zeros(0, np.int64), *self._arrivals])
        arrivals = arrivals[table.state[arrivals] != State.ABSENT]
        self.prompts = self.prompts.drop(gone).insert(table.store, arrivals, table.space)
        self._arrivals, self._gone = [], []
        if gone:
            table.store.drop(np.array(gone, np.int64))
        return True

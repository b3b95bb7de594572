"""Requests that run first, so that their answers tell how long those of others will be (paper 5.1)."""

from __future__ import annotations

from collections import deque
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.order.output_length import choose_samples
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree
from sglang.srt.blend.core.pool.request_table import RequestTable, State

SHORT_CAP = 16
"""Output tokens. Answers capped at so few need no sample: whatever their length is, it changes little, while
the prefix of a sample may have left the cache when its relatives' turn comes."""


class Samples:
    """The samples of a pool, in the order in which they were chosen.

    Attributes:
        answered: whether the last open sample has left since this was set to False.
    """

    def __init__(self, table: RequestTable, rng: np.random.Generator) -> None:
        self.answered = False
        self._table, self._rng = table, rng
        self._slots: deque[int] = deque()
        self._open = 0

    def choose(
        self,
        slots: NDArray[np.int64],
        tree: ResourceAwarePrefixTree,
        planned: NDArray[np.bool_],
        fraction: float,
    ) -> None:
        """Sample more requests of unknown length where no answer tells about them.

        Args:
            slots: (n,) the tree's requests.
            planned: (n,) whether each may run.
            fraction: of the requests of unknown length, to be sampled.
        """
        table = self._table
        unexpected = (table.known[slots] == 0) & (table.hint[slots] == 0)
        unknown = planned & unexpected & (table.max_new[slots] > SHORT_CAP)
        covered = table.sampled[slots] | (table.observed[slots] >= 0)
        picks = slots[
            choose_samples(
                lo=tree.lo,
                hi=tree.hi,
                unknown=unknown & ~covered,
                covered=covered,
                fraction=fraction,
                rng=self._rng,
            )
        ]
        table.sampled[picks] = True
        self._open += len(picks)
        self._slots.extend(picks.tolist())

    def waiting(self, limit: int | None = None) -> list[int]:
        """The first samples that wait, `limit` at most."""
        state = self._table.state
        while self._slots and state[self._slots[0]] != State.WAITING:
            self._slots.popleft()
        return list(islice((s for s in self._slots if state[s] == State.WAITING), limit))

    def left(self) -> None:
        """A sample has left the pool, answered or not."""
        self._open -= 1
        self.answered |= self._open == 0

    def drop_absent(self) -> None:
        """Forget those that have left: their slots may belong to others from now on."""
        self._slots = deque(s for s in self._slots if self._table.state[s] != State.ABSENT)

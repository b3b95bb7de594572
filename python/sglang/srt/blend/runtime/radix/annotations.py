"""A node of the radix tree is annotated with what the planner knows about its prefix.

A cached node stores nothing but the range of the planner's *sorted* prompts that pass through it.
Everything else is a range query on the planner's ``PendingIndex``, so admissions, aborts and
retractions need no bookkeeping in the tree: the answer is exact by construction. Ranges go stale
when the sorted order itself changes (``index.epoch``) and are then narrowed again, lazily, from the
parent's range by the node's own tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.pool.pending_index import NEVER
from sglang.srt.blend.runtime.radix.namespaces import Namespaces
from sglang.srt.blend.runtime.token_ids import fold

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import RadixKey


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a cached node is still needed for: the waiting requests that begin with its whole path.

    Attributes:
        requests: how many they are.
        saved_comp: compute seconds that the node's own tokens spare them.
        density: Comp/Mem of them with the cached path counted as free (paper 4.1, with the path as the
            shared part); ``inf`` when they have no Mem, 0.0 when there are none.
        next_use: position in the plan of the first of them; ``NEVER`` when there are none.
    """

    requests: int
    saved_comp: float
    density: float
    next_use: int


class PlannerView:
    """The part of a planner that the radix tree reads.

    A range [lo, hi) is one of the planner's sorted prompts, and holds as long as `epoch`.

    Args:
        cost_model: gives the compute seconds that a cached prefix saves.
        namespaces: the numbering under which the planner's prompts were added.
    """

    __slots__ = ("_cost_model", "_index", "_namespaces", "_roots", "_roots_epoch")

    def __init__(self, planner: Planner, cost_model: CostModel, namespaces: Namespaces) -> None:
        self._index = planner.ledger.index
        self._cost_model = cost_model
        self._namespaces = namespaces
        self._roots: dict[tuple[str | None, str | None], tuple[int, int]] = {}
        self._roots_epoch = -1

    @property
    def epoch(self) -> int:
        """A number that changes when sorted prompts shift: every stored range is void then."""
        return self._index.epoch

    @property
    def version(self) -> int:
        """A number that changes with every update of the planner: answers of an equal version still hold."""
        return self._index.version

    def root(self, key: RadixKey) -> tuple[int, int]:
        """The range of all prompts in the namespace of a node directly below the root."""
        if self._roots_epoch != self._index.epoch:
            self._roots_epoch = self._index.epoch
            self._roots.clear()
        name = (key.extra_key, key.cache_salt)
        found = self._roots.get(name)
        if found is None:
            namespace = self._namespaces.find(*name)
            found = (0, 0) if namespace is None else self._index.root(namespace)
            self._roots[name] = found
        return found

    def narrow(self, lo: int, hi: int, depth: int, key: RadixKey) -> tuple[int, int]:
        """The part of [lo, hi), whose prompts agree on ``depth`` tokens, that goes on with ``key``."""
        return (lo, lo) if lo >= hi else self._index.narrow(lo, hi, depth, _tokens(key))

    def next_use(self, lo: int, hi: int) -> int:
        """Position in the plan of the first waiting request of a range; ``NEVER`` without one."""
        return NEVER if lo >= hi else self._index.next_use(lo, hi)

    def used_sooner(self, lo: int, hi: int, depth: int, key: RadixKey, use: int, page: int) -> int:
        """How many pages of ``key``, less than all, requests of [lo, hi) need before the position ``use``.

        Args:
            depth: tokens on which the prompts of the range agree; ``key`` begins behind them.
            page: tokens of a page.
        """
        return 0 if lo >= hi else self._index.used_sooner(lo, hi, depth, _tokens(key), use, page)

    def next_use_many(self, lo: NDArray[np.int64], hi: NDArray[np.int64]) -> NDArray[np.int64]:
        """`next_use` of many ranges at once, int64 (n,)."""
        return self._index.next_use_many(lo, hi)

    def annotation(self, lo: int, hi: int, start: int, end: int) -> Annotation:
        """The annotation of a node that holds tokens [start, end) of its path and the range [lo, hi)."""
        totals = self._index.totals(lo, hi) if lo < hi else None
        if totals is None or totals.requests == 0:
            return Annotation(0, 0.0, 0.0, NEVER)
        path, above = self._prefill(end), self._prefill(start)
        remaining = max(0.0, totals.comp - totals.requests * path)
        density = remaining / totals.mem if totals.mem > 0 else float("inf")
        return Annotation(
            int(totals.requests),
            float(totals.requests * (path - above)),
            float(density),
            int(totals.next_use),
        )

    def _prefill(self, tokens: int) -> float:
        """Compute seconds of prefilling so many tokens from nothing."""
        return float(self._cost_model.prefix_comp(tokens)) if tokens else 0.0


def _tokens(key: RadixKey) -> NDArray[np.int32]:
    return fold(np.frombuffer(key.raw_token_ids(), dtype=np.int64))

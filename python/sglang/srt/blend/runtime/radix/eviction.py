"""The cache evicts what nobody will use first, then what is used furthest in the future, then by LRU.

With the plan known, the best victim is the cached prefix whose next use is furthest away (Belady;
docs/eviction.md says why next use alone decides). Upstream builds a heap over every evictable leaf on each
evict call, and once the pool is full each decode step evicts. This queue keeps its heap between calls and
touches only what changed: leaves that became evictable, and leaves whose next use moved when the planner
changed. Which ones moved is one vectorised query over the nodes' ranges.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from sglang.srt.blend.core.pool.pending_index import NEVER

if TYPE_CHECKING:
    from sglang.srt.blend.runtime.radix.annotations import PlannerView
    from sglang.srt.blend.runtime.radix.node import AnnotatedNode, Entry

_MIN_ROWS = 256


class EvictionQueue:
    """The evictable leaves of a tree, the next victim first.

    Keys compare as (-next_use, last_access_time, id): unique, and equal on all tensor-parallel ranks. A
    leaf's valid entry is ``node.queued``; superseded entries stay in the heap and are skipped. A node
    that ever was a leaf holds a row (``node.row``) of ``lo``, ``hi`` and ``use`` until it leaves the
    tree.

    Args:
        leaves: the tree core's live set of evictable leaves.
        view: what the planner knows; None orders by LRU alone.
        locate: makes a node's range current.
    """

    def __init__(
        self,
        leaves: set[AnnotatedNode],
        view: PlannerView | None,
        locate: Callable[[AnnotatedNode], None],
    ) -> None:
        self._leaves = leaves
        self._view = view
        self._locate = locate
        self._heap: list[Entry] = []
        self._fresh: set[AnnotatedNode] = set()
        self._nodes: list[AnnotatedNode | None] = []
        self._free_rows: list[int] = []
        self._lo = np.zeros(_MIN_ROWS, np.int64)
        self._hi = np.zeros(_MIN_ROWS, np.int64)
        self._use = np.full(_MIN_ROWS, NEVER, np.int64)
        self._epoch = -1
        self._version = -1

    def note(self, node: AnnotatedNode) -> None:
        """The node became an evictable leaf, or may have: look at it before the next pop."""
        self._fresh.add(node)

    def forget(self, node: AnnotatedNode) -> None:
        """The node left the tree."""
        self._fresh.discard(node)
        node.queued = None
        if node.row >= 0:
            self._nodes[node.row] = None
            self._lo[node.row] = self._hi[node.row] = 0
            self._use[node.row] = NEVER
            self._free_rows.append(node.row)
            node.row = -1

    def refresh(self) -> None:
        """Bring every key up to date; call once before an eviction, during which the planner stands still."""
        if self._view is not None and self._version != self._view.version:
            self._follow_planner(self._view)
        if len(self._heap) > 2 * len(self._leaves) + _MIN_ROWS:
            self._rebuild_heap()
        self._take_fresh()

    def pop(self) -> AnnotatedNode | None:
        """The next victim, or None without a leaf. It counts as gone: evict it, or `note` it again."""
        if self._fresh:
            self._take_fresh()
        heap, leaves = self._heap, self._leaves
        while heap:
            entry = heapq.heappop(heap)
            node = entry[3]
            if node.queued is not entry:
                continue
            node.queued = None
            if node not in leaves:
                continue
            if entry[1] == node.last_access_time:
                return node
            self._push(node, -entry[0])  # matched meanwhile: younger than its key says
        return None

    def _follow_planner(self, view: PlannerView) -> None:
        """Ask again for every row's next use; requeue the leaves where it moved."""
        if self._epoch != view.epoch:
            self._epoch = view.epoch
            for node in self._nodes:
                if node is not None:
                    self._locate_row(node)
        self._version = view.version
        rows = len(self._nodes)
        use = view.next_use_many(self._lo[:rows], self._hi[:rows])
        moved = np.flatnonzero(use != self._use[:rows])
        self._use[:rows] = use
        for row in moved.tolist():
            node = self._nodes[row]
            assert node is not None
            if node in self._leaves:
                self._push(node, int(use[row]))

    def _take_fresh(self) -> None:
        fresh = [node for node in self._fresh if node in self._leaves]
        self._fresh.clear()
        for node in fresh:
            use = self._next_use(node)
            if node.queued is None or node.queued[0] != -use:
                self._push(node, use)

    def _next_use(self, node: AnnotatedNode) -> int:
        if self._view is None:
            return NEVER
        if node.row < 0:
            self._add_row(node)
            self._locate_row(node)
            use = self._view.next_use(node.lo, node.hi)
            self._use[node.row] = use
        return int(self._use[node.row])

    def _locate_row(self, node: AnnotatedNode) -> None:
        """Make the range in the node's row current."""
        self._locate(node)
        self._lo[node.row], self._hi[node.row] = node.lo, node.hi

    def _add_row(self, node: AnnotatedNode) -> None:
        if self._free_rows:
            node.row = self._free_rows.pop()
            self._nodes[node.row] = node
            return
        node.row = len(self._nodes)
        self._nodes.append(node)
        if node.row == len(self._lo):
            self._lo = np.concatenate([self._lo, np.zeros_like(self._lo)])
            self._hi = np.concatenate([self._hi, np.zeros_like(self._hi)])
            self._use = np.concatenate([self._use, np.full_like(self._use, NEVER)])

    def _rebuild_heap(self) -> None:
        """Drop the superseded entries from the heap."""
        self._heap = [entry for entry in self._heap if entry[3].queued is entry]
        heapq.heapify(self._heap)

    def _push(self, node: AnnotatedNode, use: int) -> None:
        entry = (-use, node.last_access_time, node.id, node)
        node.queued = entry
        heapq.heappush(self._heap, entry)

    def _check(self) -> None:
        """Assert that every leaf will be popped in its turn and that rows and nodes agree; O(nodes)."""
        heap, rows = self._heap, len(self._nodes)
        assert all(heap[(i - 1) // 2] <= heap[i] for i in range(1, len(heap))), "the heap is out of order"
        queued = {entry[3] for entry in heap if entry[3].queued is entry}
        for node in self._leaves - self._fresh:
            assert node in queued, "a leaf would never be popped"
            assert node.queued is not None
            assert node.queued[1] <= node.last_access_time, "an entry is younger than its leaf"
            assert node.queued[0] == -self._next_use(node), "an entry is not queued by its next use"
        taken = [row for row, node in enumerate(self._nodes) if node is not None and node.row == row]
        assert sorted([*taken, *self._free_rows]) == list(range(rows)), "a row is neither free nor its node's"
        if self._view is not None and self._version == self._view.version:
            use = self._view.next_use_many(self._lo[:rows], self._hi[:rows])
            assert np.array_equal(use, self._use[:rows]), "a next use is out of date"

"""Order of eviction: what nobody will use first, then what is used furthest in the future, then LRU.

With the plan known, the best victim is the cached prefix whose next use is furthest away (Belady).
Upstream builds a heap over every evictable leaf on each evict call, and once the pool is full each
decode step evicts. This queue keeps its heap between calls and touches only what changed: leaves that
became evictable, and leaves whose next use moved when the planner changed. Which ones moved is one
vectorised query over the nodes' ranges.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from sglang.srt.blend.core.pool.pending_index import NEVER

if TYPE_CHECKING:
    from sglang.srt.blend.runtime.radix.annotations import PlannerView
    from sglang.srt.blend.runtime.radix.tree_core import AnnotatedNode

Entry = tuple[int, float, int, "AnnotatedNode"]  # (-next use, last access, node id, node)

_MIN_ROWS = 256


class EvictionQueue:
    """Evictable leaves, most evictable first.

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
        """Bring every key up to date; call once before a walk, the planner stands still during one."""
        if self._view is not None and self._version != self._view.version:
            self._follow_planner(self._view)
        if len(self._heap) > 2 * len(self._leaves) + _MIN_ROWS:
            self._rebuild_heap()
        self._take_fresh()

    def pop(self) -> AnnotatedNode | None:
        """Most evictable leaf, or None. It counts as gone: evict it, or ``note`` it again."""
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
                    self._place(node)
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
            self._place(node)
            use = self._view.next_use(node.lo, node.hi)
            self._use[node.row] = use
        return int(self._use[node.row])

    def _place(self, node: AnnotatedNode) -> None:
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
        """Drop superseded entries."""
        self._heap = [entry for entry in self._heap if entry[3].queued is entry]
        heapq.heapify(self._heap)

    def _push(self, node: AnnotatedNode, use: int) -> None:
        entry = (-use, node.last_access_time, node.id, node)
        node.queued = entry
        heapq.heappush(self._heap, entry)

"""SGLang's unified radix tree whose nodes know the pending requests below them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang.srt.blend.core.pool.pending_index import NEVER
from sglang.srt.blend.runtime.radix.annotations import Annotation, PlannerView
from sglang.srt.blend.runtime.radix.eviction import EvictionQueue
from sglang.srt.blend.runtime.radix.node import AnnotatedNode
from sglang.srt.mem_cache.unified_cache.components import (
    BASE_COMPONENT_TYPE,
    ComponentType,
    TreeComponent,
)
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeCore
from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import (
    EvictDeviceLeafResult,
    EvictDeviceNextNodeResult,
    NodeId,
)

if TYPE_CHECKING:
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams


class AnnotatedTreeCore(UnifiedTreeCore):
    """Upstream's tree core with annotations and, unless the user chose a policy, eviction by the plan.

    Without a planner every next use is ``NEVER`` and the eviction order is upstream's LRU.

    Args:
        plan_eviction: False leaves the order of eviction to the policy in ``params``.

    Attributes:
        plans_eviction: whether the plan decides what is evicted first.
    """

    def __init__(
        self,
        params: CacheInitParams,
        components: dict[ComponentType, TreeComponent],
        *,
        plan_eviction: bool = True,
    ) -> None:
        self._view: PlannerView | None = None
        self.plans_eviction = plan_eviction
        self._wanted_tokens = 0
        super().__init__(params, components)  # calls reset()

    def reset(self) -> None:
        """Forget every node; upstream calls it at construction and when the cache is flushed."""
        super().reset()
        self._queue = EvictionQueue(self.evictable_device_leaves, self._view, self._locate)

    def attach(self, view: PlannerView | None) -> None:
        """Annotate from this planner from now on; None annotates from none."""
        self._view = view
        self._queue = EvictionQueue(self.evictable_device_leaves, view, self._locate)
        for node in self._node_arena.values():
            node.epoch, node.queued, node.row = None, None, -1
            self._queue.note(node)

    # ---- annotations ----

    def annotation(self, node_id: NodeId) -> Annotation | None:
        """The node's annotation at this moment; None for the root or without a planner.

        O(log n) for n prompts, once the node has been looked at since the prompts were last sorted.
        """
        node = self.node_by_id(node_id)
        if self._view is None or node is self.root_node:
            return None
        self._locate(node)
        return self._view.annotation(node.lo, node.hi, node.end - len(node.key), node.end)

    def held_tokens(self, node_id: NodeId) -> int:
        """Tokens on the path to the node that running requests hold (locked, so not evictable)."""
        held = 0
        node = self.node_by_id(node_id)
        while node is not self.root_node:
            if node.component_data[BASE_COMPONENT_TYPE].lock_ref > 0:
                held += len(node.key)
            node = node.parent
        return held

    def cached_prefixes(self, least: int) -> list[tuple[int, int, int]]:
        """What the cache holds of waiting prompts: ranges of the sorted prompts, and tokens of theirs.

        Longer prefixes of parts of a range follow that of the whole. Nothing without a planner.

        Args:
            least: tokens; no others are looked for that end in a leaf of fewer.
        """
        view, found = self._view, list[tuple[int, int, int]]()
        if view is None:
            return found
        nodes: list[AnnotatedNode] = [self.root_node]
        while nodes:
            node = nodes.pop()
            for child in node.children.values():
                if len(child.key) < least and not child.children:
                    continue
                self._locate(child)
                if view.next_use(child.lo, child.hi) < NEVER:
                    found.append((child.lo, child.hi, child.end))
                    nodes.append(child)
                else:
                    found += self._beginning(node, child)
        return [one for one in found if one[2] >= least]

    def _beginning(self, parent: AnnotatedNode, node: AnnotatedNode) -> list[tuple[int, int, int]]:
        """The same of the beginning of a node, if nobody who waits goes on with all of it."""
        view, start = self._view, node.end - len(node.key)
        assert view is not None
        lo, hi = self._range(parent, node)
        needed = int(self.page_size) * view.used_sooner(lo, hi, start, node.key, NEVER, self.page_size)
        if not needed:
            return []
        return [(*view.narrow(lo, hi, start, node.key[:needed]), start + needed)]

    def _locate(self, node: AnnotatedNode) -> None:
        """Make the node's range current, narrowing down from its nearest current ancestor."""
        view, root = self._view, self.root_node
        assert view is not None
        epoch = view.epoch
        path: list[AnnotatedNode] = []
        while node is not root and node.epoch != epoch:
            path.append(node)
            node = node.parent
        for child in reversed(path):
            lo, hi = self._range(node, child)
            start = 0 if node is root else node.end
            child.lo, child.hi = view.narrow(lo, hi, start, child.key)
            child.end = start + len(child.key)
            child.epoch = epoch
            node = child

    def _range(self, node: AnnotatedNode, child: AnnotatedNode) -> tuple[int, int]:
        """Range of prompts at a current node, for a child of it: the root splits by namespace."""
        assert self._view is not None
        return self._view.root(child.key) if node is self.root_node else (node.lo, node.hi)

    # ---- tree operations ----

    def _new_node(self, priority: int = 0) -> AnnotatedNode:
        node = AnnotatedNode(self.component_types, priority=priority)
        self._register_node(node)
        return node

    def _update_evictable_leaf_sets(self, node: AnnotatedNode) -> None:
        """Upstream's rule where there is no host tier: every node below a node is on the device."""
        data = node.component_data[BASE_COMPONENT_TYPE]
        if node.children or data.lock_ref > 0 or data.value is None or node is self.root_node:
            self.evictable_device_leaves.discard(node)
        else:
            self.evictable_device_leaves.add(node)
            self._queue.note(node)

    def _unregister_node(self, node: AnnotatedNode) -> None:
        super()._unregister_node(node)
        self._queue.forget(node)

    # ---- eviction ----

    def evict_device_start(self, component_type: ComponentType, request_cnt: int) -> None:
        """An eviction of so many tokens begins."""
        if not self.plans_eviction:
            super().evict_device_start(component_type, request_cnt)
            return
        self._wanted_tokens = request_cnt
        self._queue.refresh()

    def evict_device_next_node(
        self, component_type: ComponentType, tracker: dict[ComponentType, int]
    ) -> EvictDeviceNextNodeResult:
        """The leaf to evict next, while the tokens evicted so far (``tracker``) are not enough."""
        if not self.plans_eviction:
            return super().evict_device_next_node(component_type, tracker)
        result = EvictDeviceNextNodeResult()
        if tracker[component_type] < self._wanted_tokens:
            node = self._queue.pop()
            if node is not None:
                result.node_id = node.id
                result.made_progress = True
        return result

    def evict_device_end(self, component_type: ComponentType) -> None:
        """The eviction is over."""
        if not self.plans_eviction:
            super().evict_device_end(component_type)

    def evict_device_leaf(self, node_id: NodeId, is_write_back: bool) -> EvictDeviceLeafResult:
        """Evict a leaf, but not the part of it that is needed sooner than its end.

        A leaf holds one whole prompt until somebody else's match splits it. Its end may be dead
        while its beginning is the prefix of a hundred pending requests, so cut there first.
        """
        if self.plans_eviction and self._view is not None:
            node = self.node_by_id(node_id)
            keep = self._tokens_needed_sooner(node)
            if keep:
                self._split_node(node.key, node, keep)
        return super().evict_device_leaf(node_id, is_write_back)

    def _tokens_needed_sooner(self, node: AnnotatedNode) -> int:
        """Length of the node's longest page-aligned beginning whose next use precedes its end's."""
        view, page = self._view, self.page_size
        assert view is not None
        if len(node.key) < 2 * page:
            return 0
        self._locate(node)
        parent = node.parent
        if parent is not self.root_node:
            self._locate(parent)
        lo, hi = self._range(parent, node)
        start = node.end - len(node.key)
        if lo == node.lo and hi == node.hi:  # whoever needs the parent needs all of the node
            return 0
        use = view.next_use(node.lo, node.hi)
        return int(page) * view.used_sooner(lo, hi, start, node.key, use, page)

    def _check(self) -> None:
        """Assert that ranges nest, that every leaf without a lock may be evicted, and `EvictionQueue._check`.

        O(nodes).
        """
        leaves = set()
        nodes: list[AnnotatedNode] = list(self.root_node.children.values())
        while nodes:
            node = nodes.pop()
            nodes += node.children.values()
            if not node.children and node.component_data[BASE_COMPONENT_TYPE].lock_ref == 0:
                leaves.add(node)
            if self._view is None:
                continue
            self._locate(node)
            lo, hi = self._range(node.parent, node)
            above = 0 if node.parent is self.root_node else node.parent.end
            assert lo <= node.lo <= node.hi <= hi, "a node's range is not within its parent's"
            assert node.end == above + len(node.key), "a node does not begin where its parent ends"
        assert leaves == self.evictable_device_leaves, "a leaf is missing among the evictable ones"
        self._queue._check()

"""A node of the annotated tree."""

from __future__ import annotations

from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

Entry = tuple[int, float, int, "AnnotatedNode"]
"""Of the eviction queue: (-next use, last access, node id, node)."""


class AnnotatedNode(UnifiedTreeNode):
    """A cached node and the range of sorted pending prompts that pass through it.

    Attributes:
        epoch: the planner's epoch for which the rest holds; None before the first look.
        lo, hi: the range [lo, hi).
        end: tokens from the root to the node's end. A split leaves it as it is.
        queued, row: the node's valid entry and its row in the eviction queue, which alone sets them.
    """

    epoch: int | None = None
    lo: int = 0
    hi: int = 0
    end: int = 0
    queued: Entry | None = None
    row: int = -1

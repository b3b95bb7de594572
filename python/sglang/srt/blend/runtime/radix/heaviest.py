"""Which cached prefixes spare the waiting requests the most compute, for the eyes of a user.

Nothing is kept for it: the tree's annotations are read when somebody asks, from the top down, where the
prefixes are that many requests need.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING

from sglang.srt.blend.core.pool.request_table import UNPLANNED

if TYPE_CHECKING:
    from sglang.srt.blend.runtime.radix.node import AnnotatedNode
    from sglang.srt.blend.runtime.radix.tree_core import AnnotatedTreeCore

COUNT = 8
"""Prefixes that are shown."""

MAX_VISITS = 256
"""Nodes that one look may cost, each about ten microseconds of the scheduler's time."""


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """A cached prefix that waiting requests still need.

    Attributes:
        tokens: tokens of the whole prefix, from the beginning of the prompt.
        own_tokens: how many of them, at its end, no shorter prefix of the cache holds.
        requests: waiting requests that begin with the whole prefix.
        saved_seconds: compute seconds that its own tokens spare these requests.
        next_use: position in the plan of the first of them; None while the plan has none of them.
        density: Comp/Mem of these requests with the whole prefix free; None where they have no Mem.
    """

    tokens: int
    own_tokens: int
    requests: int
    saved_seconds: float
    next_use: int | None
    density: float | None


def heaviest_prefixes(
    core: AnnotatedTreeCore, count: int = COUNT, max_visits: int = MAX_VISITS
) -> list[CachedPrefix]:
    """The `count` cached prefixes whose own tokens spare waiting requests the most, the heaviest first.

    O(max_visits log n) for n prompts, however large the tree is. Nodes that more requests need are looked
    into first, and none below a node that nobody needs. So with no more than `max_visits` nodes on the way
    the answer is exact; with more, prefixes of few requests may be missing. Without a planner there are none.
    """
    found: list[CachedPrefix] = []
    frontier: list[tuple[int, int, AnnotatedNode]] = [(0, 0, core.root_node)]  # (-requests, visit, node)
    visits = 0
    while frontier and visits < max_visits:
        node = heapq.heappop(frontier)[2]
        for child in islice(node.children.values(), max_visits - visits):
            visits += 1
            prefix = _look_at(core, child)
            if prefix is None:
                continue
            found.append(prefix)
            if child.children:
                heapq.heappush(frontier, (-prefix.requests, visits, child))
    return heapq.nlargest(count, found, key=attrgetter("saved_seconds"))


def _look_at(core: AnnotatedTreeCore, node: AnnotatedNode) -> CachedPrefix | None:
    """The prefix that ends with this node; None when nobody waits for it."""
    annotation = core.annotation(node.id)
    if annotation is None or annotation.requests == 0:
        return None
    return CachedPrefix(
        tokens=node.end,
        own_tokens=len(node.key),
        requests=annotation.requests,
        saved_seconds=annotation.saved_comp,
        next_use=annotation.next_use if annotation.next_use < UNPLANNED else None,
        density=annotation.density if annotation.density < float("inf") else None,
    )

"""Stealing: whole subtrees that a late replica has not begun go to one that would end earlier.

The thief computes the prefix above a stolen subtree once more. What is taken must be worth that: neither of
the two may end later than the late one would have. Subtrees are whole, and as large as the difference allows;
those whose prefix costs next to nothing go first, the others where they do not suffice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.order.sharding import scanned
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# A prefix is cheap if to compute it again costs less than this share of the work below it.
_CHEAP = 0.01
# An end that is earlier by a smaller share than this is a rounding error.
_EARLIER = 1e-9


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a replica still has to do.

    Attributes:
        seconds: modelled, of all that waits and runs.
        speed: modelled seconds that it gets done in a second; only ratios of speeds matter.
    """

    seconds: float
    speed: float = 1.0

    @property
    def end(self) -> float:
        """Seconds until it has nothing left."""
        return self.seconds / self.speed


@dataclass(frozen=True, slots=True)
class Theft:
    """What goes from one replica to another.

    Attributes:
        requests: (m,) indices into the order of the victim's tree, ascending.
        victim, thief: as they are afterwards.
        again: seconds of prefixes that both have to compute now, at most.
    """

    requests: Ints
    victim: Backlog
    thief: Backlog
    again: float


@dataclass(frozen=True, slots=True)
class _Items:
    """The nodes of a tree, then its requests; all arrays (nodes + n,).

    Attributes:
        parent: the node that each hangs from.
        lo, hi: the requests that it is made of.
        free: whether nothing of it has begun.
        prefix: seconds of the prefix above it.
        comp, mem: seconds that the victim saves when it goes; its prefix stays there.
    """

    parent: Ints
    lo: Ints
    hi: Ints
    free: NDArray[np.bool_]
    prefix: Floats
    comp: Floats
    mem: Floats

    @property
    def gain(self) -> Floats:
        """Comp + Mem."""
        return self.comp + self.mem

    @classmethod
    def of(cls, tree: ResourceAwarePrefixTree, cost: CostModel, waits: NDArray[np.bool_]) -> _Items:
        n = tree.num_requests
        parent = np.concatenate([tree.parent, tree.request_parent])
        lo = np.concatenate([tree.lo, np.arange(n)])
        hi = np.concatenate([tree.hi, np.arange(1, n + 1)])
        waiting = np.concatenate([[0], np.cumsum(waits)])
        prefix = cost.prefix_comp(tree.depth)[np.maximum(parent, 0)]
        alone = np.concatenate([tree.node_comp - tree.node_saved, tree.comp])
        return cls(
            parent=parent,
            lo=lo,
            hi=hi,
            free=(waiting[hi] - waiting[lo] == hi - lo) & (parent >= 0),
            prefix=prefix,
            comp=np.maximum(alone - prefix, 0.0),
            mem=np.concatenate([tree.node_mem, tree.mem]),
        )


def steal(
    tree: ResourceAwarePrefixTree,
    cost: CostModel,
    waits: NDArray[np.bool_],
    *,
    victim: Backlog,
    thief: Backlog,
) -> Theft:
    """Choose what an early replica takes from a late one; nothing where that does not pay.

    Two documents with two questions each wait, and nothing else is left to do anywhere:

    >>> from sglang.srt.blend.core.cost.hardware import load_hardware
    >>> from sglang.srt.blend.core.cost.model_shape import ModelShape
    >>> from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts
    >>> llama_3_8b = ModelShape(
    ...     gemm_params=7.5e9, weight_bytes=15e9, layers=32, attention_width=4096, kv_bytes=4096
    ... )
    >>> cost = CostModel(llama_3_8b, load_hardware("a100-80gb"))
    >>> documents = [range(start, start + 1000) for start in (0, 2000)]
    >>> tokens = np.concatenate([[*text, 9000 + question] for text in documents for question in (0, 1)])
    >>> prompts = SortedPrompts.of(tokens, np.arange(5) * 1001)
    >>> tree = prompts.tree(np.full(4, 1001), np.full(4, 50), cost)
    >>> whole = float((tree.comp - tree.saved + tree.mem).sum())
    >>> theft = steal(tree, cost, np.full(4, True), victim=Backlog(whole), thief=Backlog(0.0))
    >>> theft.requests.tolist(), theft.again
    ([2, 3], 0.0)

    Args:
        tree: all that the victim has, waiting and running.
        waits: (n,) which of the tree's requests have not begun.
        victim: `seconds` of the whole tree, each shared prefix once.

    Raises:
        ValueError: `waits` has another length than the tree.
    """
    if len(waits) != tree.num_requests:
        raise ValueError(f"waits has {len(waits)} entries for {tree.num_requests} requests")
    nothing = Theft(np.zeros(0, np.int64), victim, thief, 0.0)
    if victim.end <= thief.end or not waits.any():
        return nothing
    items = _Items.of(tree, cost, waits)
    fair = (victim.end - thief.end) * victim.speed * thief.speed / (victim.speed + thief.speed)
    whole = items.free & (items.gain <= fair)
    candidates = np.flatnonzero(whole & ~whole[np.maximum(items.parent, 0)])
    cheap = items.prefix[candidates] <= _CHEAP * items.gain[candidates]
    theft = _more(items, nothing, candidates[cheap], len(tree.depth))
    other = _more(items, theft, candidates[~cheap], len(tree.depth))
    # Who computes a prefix again keeps a GPU busy for nothing: that has to bring the end nearer by as much.
    if (other.again - theft.again) / thief.speed <= theft.victim.end - other.victim.end:
        theft = other
    return theft if len(theft.requests) else _one_too_large(items, nothing)


def _more(items: _Items, theft: Theft, candidates: Ints, nodes: int) -> Theft:
    """Take such items too as still fit, as the dual scanner takes them: of the mean density."""
    if not len(candidates):
        return theft
    taken, again = _take(
        candidates[scanned(items.comp[candidates], items.mem[candidates])],
        items.parent,
        items.prefix,
        items.gain,
        np.array([theft.victim.seconds, theft.victim.speed, theft.thief.seconds, theft.thief.speed]),
        nodes,
    )
    return _with(items, theft, taken, again)


def _one_too_large(items: _Items, nothing: Theft) -> Theft:
    """Take one item for which the thief ends after the victim, yet before the victim would have ended."""
    free, victim, thief = np.flatnonzero(items.free), nothing.victim, nothing.thief
    if not len(free):
        return nothing
    gain = items.gain[free]
    ends = np.maximum(
        (victim.seconds - gain) / victim.speed, (thief.seconds + gain + items.prefix[free]) / thief.speed
    )
    best = int(np.argmin(ends))
    if ends[best] + items.prefix[free[best]] / thief.speed >= victim.end * (1.0 - _EARLIER):
        return nothing
    return _with(items, nothing, free[best : best + 1], float(items.prefix[free[best]]))


def _with(items: _Items, theft: Theft, taken: Ints, again: float) -> Theft:
    """The theft with more items, for which the thief computes so many seconds again."""
    gain = float(items.gain[taken].sum())
    requests = [np.arange(items.lo[item], items.hi[item]) for item in taken.tolist()]
    return Theft(
        np.sort(np.concatenate([theft.requests, *requests])),
        Backlog(max(theft.victim.seconds - gain, 0.0), theft.victim.speed),
        Backlog(theft.thief.seconds + gain + again, theft.thief.speed),
        theft.again + again,
    )


@njit(cache=True)
def _take(order, parent, above, gain, backlogs, nodes):  # type: ignore[no-untyped-def]
    """Take items as long as the thief ends before the victim; relatives compute their prefix once.

    Args:
        order: items in the order in which they are looked at.
        above: (items,) seconds of the prefix above each.
        backlogs: seconds and speed of the victim, then of the thief.

    Returns:
        The items taken; seconds of prefixes that the thief computes again.
    """
    taken = np.empty(len(order), np.int64)
    held = np.zeros(nodes)  # seconds of the prefixes that the thief has by now
    count, again = 0, 0.0
    late, late_speed, early, early_speed = backlogs
    for item in order:
        node = parent[item]
        while node > 0 and held[node] == 0.0:
            node = parent[node]
        more = above[item] - held[node]
        if (early + gain[item] + more) / early_speed <= (late - gain[item]) / late_speed:
            late -= gain[item]
            early += gain[item] + more
            again += more
            taken[count] = item
            count += 1
            below, node = item, parent[item]
            while node > 0 and held[node] == 0.0:
                held[node] = above[below]
                below, node = node, parent[node]
    return taken[:count], again

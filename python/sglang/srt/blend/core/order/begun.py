"""Prefixes that are in use already, and what is left to read them: a new plan should not leave them behind.

Estimates change while answers end, so a new plan sorts subtrees anew, and one of which a few requests have
run may come to stand far away. Until its turn comes its prefix has left the cache and is computed again.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree
from sglang.srt.blend.core.step.leaders import CACHE_SHARE

Ints = NDArray[np.int64]


@njit(cache=True, nogil=True)
def held_tokens(common, holds):  # type: ignore[no-untyped-def]
    """Prompt tokens that each of sorted prompts shares with the most similar one that holds KV, int64 (n,).

    Args:
        common: (n,) tokens that each prompt shares with the one before it.
        holds: (n,) flags; those that hold KV have no result, 0.
    """
    n = len(common)
    held = np.zeros(n, np.int64)
    agree = np.int64(0)  # with the last one before that holds
    for i in range(n):
        agree = min(agree, common[i])
        if holds[i]:
            agree = np.int64(2**62)
        else:
            held[i] = agree
    agree = np.int64(0)
    for i in range(n - 1, -1, -1):
        if holds[i]:
            agree = np.int64(2**62)
        else:
            held[i] = max(held[i], agree)
        agree = min(agree, common[i])
    return held


@njit(cache=True, nogil=True)
def _mark(lo, hi, depth, parent, request_parent, held, left, least, stream):  # type: ignore[no-untyped-def]
    nodes, n = len(lo), len(held)
    most = np.zeros(nodes, np.int64)
    for i in range(n):
        most[request_parent[i]] = max(most[request_parent[i]], held[i])
    for node in range(nodes - 1, 0, -1):
        most[parent[node]] = max(most[parent[node]], most[node])
    sums = np.zeros(n + 1, np.int64)
    for i in range(n):
        sums[i + 1] = sums[i] + left[i]
    begun = np.zeros(n, np.bool_)
    for node in range(1, nodes):
        in_use = min(most[node], depth[node])
        own = in_use - depth[parent[node]]
        worth = stream or sums[hi[node]] - sums[lo[node]] <= own
        if own >= least and 2 * in_use >= depth[node] and worth:
            begun[lo[node] : hi[node]] = True
    for i in range(n):
        own = held[i] - depth[request_parent[i]]
        if own >= least and (stream or left[i] <= own):
            begun[i] = True
    return begun


def begun_requests(
    tree: ResourceAwarePrefixTree, held: Ints, kv_capacity: int, *, stream: bool = False
) -> NDArray[np.bool_]:
    """Which waiting requests belong to a subtree that is worth finishing before others begin.

    Most of its prefix is held by requests that run, and what it has of it for itself is more than all its
    requests still add. Not so in a stream: while others come nothing is finished, and the next reader of a
    prefix that is left behind computes it again.

    Args:
        tree: of the waiting requests.
        held: (n,) prompt tokens of each that requests that run hold; see `held_tokens`.
        kv_capacity: tokens.
        stream: whether other requests are to come.

    Returns:
        Flags (n,), in the tree's order.
    """
    least = max(kv_capacity // CACHE_SHARE, 1)
    left = tree.kv_tokens - held
    return np.asarray(
        _mark(tree.lo, tree.hi, tree.depth, tree.parent, tree.request_parent, held, left, least, stream)
    )

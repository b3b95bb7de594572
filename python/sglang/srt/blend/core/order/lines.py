"""Orders in which requests wait in one line, beside that of density: what else might end sooner."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.order.ordering import DensityOrder, in_order, leaf_positions
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree

Ints = NDArray[np.int64]


def lines(
    tree: ResourceAwarePrefixTree, output: Ints, sequence: Ints, begun: NDArray[np.bool_]
) -> dict[str, DensityOrder]:
    """By name: the longest answers first; depth first, subtrees of the longest answers first; as they came.

    Args:
        output: (n,) tokens that are expected of each request of the tree.
        sequence: (n,) numbers of their arrivals.
        begun: (n,) requests that go before all others; see `begun_requests`.
    """
    orders = {
        "longest": np.argsort(-output, kind="stable"),
        "depth": depth_first(tree, output),
        "arrival": np.argsort(sequence, kind="stable"),
    }
    return {
        name: in_order(tree, order[np.argsort(~begun[order], kind="stable")])
        for name, order in orders.items()
    }


def depth_first(tree: ResourceAwarePrefixTree, output: Ints) -> Ints:
    """Indices (n,) of the tree's requests, subtree by subtree: those of longer answers, on average, first."""
    nodes, n = len(tree.parent), tree.num_requests
    sums = np.concatenate([[0], np.cumsum(output)])
    mean = np.concatenate([(sums[tree.hi] - sums[tree.lo]) / (tree.hi - tree.lo).clip(1), output])
    parent = np.concatenate([tree.parent, tree.request_parent])
    count = np.concatenate([tree.node_requests, np.ones(n, np.int64)])
    siblings = np.lexsort((-mean, parent))  # stable: equal ones keep the order of their prompts
    order = np.empty(n, np.int64)
    order[leaf_positions(siblings, parent, count)[nodes:]] = np.arange(n)
    return order

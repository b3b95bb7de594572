"""The excerpt of a large pool: fewer requests, which stand for all in a simulation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sglang.batch.plan.groups import topmost
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.pool.prefix_tree import densities
from sglang.srt.blend.core.pool.workload import Workload

LARGEST_PIECE = 1 / 64
"""Share of an excerpt up to which requests with a common prefix are taken or left together."""


def choose_excerpt(workload: Workload, limit: int, cost: CostModel) -> NDArray[np.int64]:
    """Choose about `limit` requests that stand for all.

    Subtrees of up to LARGEST_PIECE * limit requests stay whole, so that their sharing stays. They are taken
    at regular distances along their densities, so that the excerpt's density is the pool's.

    Returns:
        Ascending indices into the workload; all of them where it has no more than `limit` requests.
    """
    n = len(workload)
    if n <= limit:
        return np.arange(n)
    tree, order = workload.tree(cost), workload.depth_first_order()
    small = tree.node_requests <= max(int(limit * LARGEST_PIECE), 1)
    small[0] = False
    first = np.ones(n, np.bool_)  # of its piece, in depth-first order
    for node in topmost(tree, small).tolist():
        first[tree.lo[node] + 1 : tree.hi[node]] = False
    piece = np.cumsum(first) - 1
    comp = np.bincount(piece, tree.comp - tree.saved * ~first)
    ranked = np.argsort(-densities(comp, np.bincount(piece, tree.mem)), kind="stable")
    taken = np.zeros(len(ranked), np.bool_)
    owed, fraction = 0.0, limit / n
    for number, size in zip(ranked.tolist(), np.bincount(piece)[ranked].tolist(), strict=True):
        owed += fraction * size
        if owed >= size / 2:
            taken[number] = True
            owed -= size
    return np.sort(order[taken[piece]])

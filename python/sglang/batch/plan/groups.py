"""Groups of requests that share a prefix: what a user recognises of a pool."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.batch.plan.prompts import Prompts
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree, densities
from sglang.srt.blend.core.pool.workload import Workload

Ints = NDArray[np.int64]

SHARED_PART = 0.25
"""Share of a group's mean prompt that its prefix makes up at least: a chat template's first words make no
group."""


@dataclass(frozen=True)
class Group:
    """Requests that share a prefix, which makes up a large part of their prompts.

    Attributes:
        requests: how many they are, two or more.
        line, custom_id: of the first of them in the file.
        prefix: tokens that all of them share.
        prompt, output: mean tokens of their prompts and assumed answers.
        sharing: share of the group's prompt tokens that need not be computed, 0 to 1.
        density: Comp / Mem of the group with that sharing (paper 4.1); infinite where nothing is decoded.
        work: the group's share of the pool's Comp + Mem, 0 to 1.
    """

    requests: int
    line: int
    custom_id: str
    prefix: int
    prompt: float
    output: float
    sharing: float
    density: float
    work: float


def find_groups(workload: Workload, prompts: Prompts, kept: Ints, cost: CostModel) -> list[Group]:
    """Find the groups of two or more requests, those with most work first.

    A group is the largest subtree of the prefix tree whose prefix makes up `SHARED_PART` of its prompts.

    Args:
        kept: (n,) index into `prompts` of each request of the workload.
    """
    tree, order = workload.tree(cost), workload.depth_first_order()
    prompt, output = workload.prompt[order], workload.output[order]
    mean = _interval_sums(prompt, tree) / tree.node_requests
    nodes = topmost(tree, tree.depth >= SHARED_PART * mean)
    shared = _interval_sums(tree.lcp, tree) - tree.lcp[tree.lo]  # the first has nobody to share with
    comp, mem = tree.node_comp - tree.node_saved, tree.node_mem
    whole = float(comp[0] + mem[0])
    outputs = _interval_sums(output, tree)
    groups = []
    for node in nodes[np.argsort(-(comp + mem)[nodes], kind="stable")].tolist():
        members = order[tree.lo[node] : tree.hi[node]]
        first = int(kept[members.min()])
        requests = len(members)
        groups.append(
            Group(
                requests=requests,
                line=int(prompts.line[first]),
                custom_id=prompts.custom_ids[first],
                prefix=int(tree.depth[node]),
                prompt=float(mean[node]),
                output=float(outputs[node] / requests),
                sharing=float(shared[node] / max(mean[node] * requests, 1)),
                density=float(densities(comp[node], mem[node])),
                work=float((comp[node] + mem[node]) / whole) if whole else 0.0,
            )
        )
    return groups


def topmost(tree: ResourceAwarePrefixTree, wanted: NDArray[np.bool_]) -> Ints:
    """Find the nodes of two or more requests that are wanted and lie below no other wanted node.

    Args:
        wanted: (nodes,) in preorder.
    """
    nodes, end = [], 0
    for node in np.flatnonzero(wanted & (tree.node_requests > 1)).tolist():  # preorder
        if tree.lo[node] >= end:
            nodes.append(node)
            end = tree.hi[node]
    return np.array(nodes, np.int64)


def _interval_sums(values: NDArray[np.integer], tree: ResourceAwarePrefixTree) -> NDArray[np.float64]:
    """Sum a value per sorted request, (requests,), over the requests below each node, (nodes,)."""
    sums = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return np.asarray(sums[tree.hi] - sums[tree.lo], np.float64)

"""Orders of other systems, as orders of submission to a scheduler that serves first come first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.pool.workload import Workload

GROUP_TOKENS = 32
"""A common prefix shorter than this makes no group: a trace's own system prompt of five tokens does not."""


def density_order(workload: Workload, cost: CostModel) -> NDArray[np.int64]:
    """(n,) requests from compute- to memory-intensive: blend's own order, read from one end only.

    It is told the true output lengths.
    """
    planner = Planner(cost, kv_capacity=1 << 30)
    planner.add(
        workload.tokens,
        workload.offsets,
        max_new_tokens=workload.output,
        known_output=workload.output,
    )
    planner.replan()
    return planner.order


def batchllm_order(workload: Workload, cost: CostModel) -> NDArray[np.int64]:
    """(n,) requests group after group, highest ratio of decode to prompt tokens first (BatchLLM, 2412.03594).

    Groups are the requests with a common prefix; within one, depth-first. Batches are filled by KV memory,
    which a scheduler of its own accord does. It is told the true output lengths, which BatchLLM predicts.
    """
    order = workload.depth_first_order()
    lcp = workload.tree(cost).lcp
    group = np.cumsum(lcp < GROUP_TOKENS) - 1
    computed = np.bincount(group, weights=workload.prompt[order] - lcp)
    decoded = np.bincount(group, weights=workload.output[order])
    first_groups = np.argsort(-decoded / np.maximum(computed, 1.0), kind="stable")
    rank = np.empty(len(first_groups), np.int64)
    rank[first_groups] = np.arange(len(first_groups))
    return np.asarray(order[np.argsort(rank[group], kind="stable")])

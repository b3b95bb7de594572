"""What other orders of eviction would save: prompt tokens and compute seconds that a cache too small costs.

One planner admits a workload through SGLang's radix cache, as in `radix_tree_ops`, once for every order of
eviction. No model runs. Tokens are prompt tokens computed beyond those that a cache without limit computes,
as a share of all prompt tokens; seconds are compute seconds beyond that cache's. One model is Llama 3 8B; the
other is so small that attention doubles a token's cost at position 160 already (8B: at 14,314).

    python benchmark/eviction_order.py
"""

from __future__ import annotations

import argparse
import heapq
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "test"))  # the cache without a model
from pools import llama_on_a100
from radix_pool import COST, Request, RequestPool, make_cache, server_arguments
from sglang.srt.blend.core.order.plan import PlannerOptions
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.pool.pending_index import NEVER
from sglang.srt.blend.runtime.radix import cache as radix_cache
from sglang.srt.blend.runtime.radix.namespaces import Namespaces
from sglang.srt.blend.runtime.radix.tree_core import AnnotatedNode, AnnotatedTreeCore

Key = Callable[[AnnotatedTreeCore, AnnotatedNode, int], tuple[float, ...]]  # (core, leaf, front of the plan)


def _saved_per_token(core: AnnotatedTreeCore, node: AnnotatedNode) -> float:
    return core.annotation(node.id).saved_comp / len(node.key)


def _weighted(core: AnnotatedTreeCore, node: AnnotatedNode, front: int) -> tuple[float, ...]:
    """Distance of the next use over what a token of this node costs to compute once."""
    found = core.annotation(node.id)
    if found.next_use >= NEVER:
        return (-np.inf, node.last_access_time)
    return (-(found.next_use - front) * found.requests * len(node.key) / found.saved_comp,)


KEYS: dict[str, Key | None] = {
    "last access": None,  # upstream's own
    "next use": None,
    "next use / cost per token": _weighted,
    "compute saved per token": lambda core, node, _: (_saved_per_token(core, node), node.last_access_time),
    "waiting requests": lambda core, node, _: (core.annotation(node.id).requests, node.last_access_time),
}
"""The leaf with the smallest key is evicted; None where the tree core decides by itself."""


def make_workload(name: str, args: argparse.Namespace) -> list[Request]:
    """Groups of requests with a shared prefix of 32 to 1,024 tokens.

    Answers are 4 to 400 tokens long; of `tasks` all of a group are about as long, of `mixed` they are not.
    """
    rng = np.random.default_rng(args.seed)
    lengths = np.exp(rng.uniform(np.log(32), np.log(1024), args.groups)).astype(int)
    prefixes = [rng.integers(0, 100_000, length).tolist() for length in lengths]
    outputs = np.exp(rng.uniform(np.log(4), np.log(400), args.groups))
    requests = []
    for group in rng.integers(0, args.groups, args.requests).tolist():
        own = rng.integers(0, 100_000, rng.integers(8, 64)).tolist()
        output = outputs[group] if name == "tasks" else rng.choice(outputs)
        requests.append(Request((*prefixes[group], *own), int(output), (None, None)))
    return requests


def choose_victims(core: AnnotatedTreeCore, front: Callable[[], int], key: Key) -> None:
    """Let the core evict the leaf with the smallest key, by looking at all of them.

    Args:
        front: position in the plan of the first request that still waits.
    """
    upstream = core.evict_device_next_node

    def next_node(component_type: Any, tracker: Any) -> Any:
        result = upstream(component_type, {component_type: 1 << 60})
        if tracker[component_type] < core._wanted_tokens and core.evictable_device_leaves:
            first = front()
            leaf = min(core.evictable_device_leaves, key=lambda node: (*key(core, node, first), node.id))
            result.node_id, result.made_progress = leaf.id, True
        return result

    core.evict_device_next_node = next_node


def computed(
    name: str, order: str, cost_model: Any, kv_tokens: int, args: argparse.Namespace
) -> tuple[int, float, int]:
    """Prompt tokens that had to be computed, their compute seconds, and all prompt tokens."""
    requests = make_workload(name, args)
    options = PlannerOptions(sharing_budget=args.sharing_budget)
    planner, namespaces = Planner(cost_model, kv_capacity=args.kv_tokens, options=options), Namespaces()
    with server_arguments(_radix_eviction_policy_explicitly_set=order == "last access"):
        cache = make_cache(1, kv_tokens)
    radix_cache.attach_planner(cache, planner, cost_model, namespaces)
    pool = RequestPool(cache, planner, namespaces)
    pool.add(requests)
    pool.replan()
    if KEYS[order] is not None:
        choose_victims(cache.tree_core, lambda: planner.index.next_use(0, len(requests)), KEYS[order])

    by_slot = {request.slot: request for request in requests}
    ends: list[tuple[int, int]] = []  # (step, slot) of running requests
    step, tokens, seconds, every = 0, 0, 0.0, 0
    while pool.waiting or pool.running:
        for slot in planner.propose(64):
            request = by_slot[slot]
            if not pool.start([request]):  # one by one: each finds what those before it have computed
                break
            length = len(request.tokens)
            every += length
            tokens += length - request.hit
            seconds += float(cost_model.prefix_comp(length) - cost_model.prefix_comp(request.hit))
            heapq.heappush(ends, (step + request.output, slot))
        step = ends[0][0]
        while ends and ends[0][0] <= step:
            request = by_slot[heapq.heappop(ends)[1]]
            pool.finish(request, tuple(range(request.output - 1)))
    return tokens, seconds, every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"requests": 800, "groups": 60, "kv-tokens": 5_000, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sharing-budget", type=float, default=0.99, help="low: groups are scattered")
    args = parser.parse_args()
    models = {"Llama-3-8B": llama_on_a100(), "attention": COST}
    print(f"{'workload':>8} {'model':>10}  {'evicted first by':<26} {'tokens':>7} {'seconds':>8}")
    for workload in ("tasks", "mixed"):
        for model, cost_model in models.items():
            ideal, least, every = computed(workload, "next use", cost_model, 1 << 22, args)
            for order in KEYS:
                tokens, seconds, _ = computed(workload, order, cost_model, args.kv_tokens, args)
                lost, slower = (tokens - ideal) / every, seconds / least - 1
                print(f"{workload:>8} {model:>10}  {order:<26} {lost:>7.2%} {slower:>+8.2%}", flush=True)


if __name__ == "__main__":
    main()

"""What tree operations cost on the annotated tree core, and what they gain, against upstream's cores.

One workload, admitted by one planner, through SGLang's radix cache on each tree core in turn: prompts of
many groups that share a long prefix, far more than fit the KV pool. Runs alternate between the cores, and
medians over the runs are printed. No model runs: the times are those of match, insert and evict alone.

    python benchmark/radix_tree_ops.py --json radix_tree_ops.json
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "test"))  # the cache without a model
from pools import llama_on_a100
from radix_pool import Request, RequestPool, make_cache, server_arguments
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.runtime.radix import cache as radix_cache
from sglang.srt.blend.runtime.radix.namespaces import Namespaces

OPERATIONS = ("match_prefix", "insert", "evict")


def make_workload(args: argparse.Namespace) -> list[Request]:
    """Requests of `groups` tasks: a shared prefix, a question of its own, an answer as long as the task's."""
    rng = np.random.default_rng(args.seed)
    prefixes = rng.integers(0, 100_000, (args.groups, args.shared_tokens)).tolist()
    outputs = np.exp(rng.uniform(np.log(4), np.log(400), args.groups)).astype(int)
    requests = []
    for group in rng.integers(0, args.groups, args.requests).tolist():
        own = rng.integers(0, 100_000, rng.integers(args.own_tokens // 2, args.own_tokens * 2)).tolist()
        requests.append(Request((*prefixes[group], *own), int(outputs[group]), (None, None)))
    return requests


def run(tree_core: str, args: argparse.Namespace) -> dict[str, float]:
    """Serve the whole workload once; hit rate, steps and the time of every tree operation."""
    requests = make_workload(args)
    cost_model = llama_on_a100()
    planner, namespaces = Planner(cost_model, kv_capacity=args.kv_tokens), Namespaces()
    cache = make_cache(args.page_size, args.kv_tokens, tree_core)
    if tree_core == radix_cache.BACKEND:
        radix_cache.attach_planner(cache, planner, cost_model, namespaces)
    pool = RequestPool(cache, planner, namespaces)
    pool.add(requests)
    pool.replan()

    times: dict[str, list[float]] = defaultdict(list)
    for name in OPERATIONS:
        setattr(cache, name, timed(getattr(cache, name), times[name]))
    by_slot = {request.slot: request for request in requests}
    ends: list[tuple[int, int]] = []  # (step, slot) of running requests
    hits = step = 0
    while pool.waiting or pool.running:
        batch = [by_slot[slot] for slot in planner.propose(args.batch)]
        for request in pool.start(batch):
            hits += request.hit
            heapq.heappush(ends, (step + request.output, request.slot))
        step = ends[0][0] if not pool.waiting else step + args.decode_steps
        while ends and ends[0][0] <= step:
            request = by_slot[heapq.heappop(ends)[1]]
            pool.finish(request, tuple(range(request.output - 1)))
        times["steps"].append(0.0)
    pool.check_leaks()

    steps = len(times["steps"])
    result = {f"{name}_us": 1e6 * statistics.mean(times[name]) for name in OPERATIONS}
    result |= {f"{name}_calls": len(times[name]) for name in OPERATIONS}
    result["tree_ms_per_request"] = 1e3 * sum(sum(times[name]) for name in OPERATIONS) / len(requests)
    result["hit_rate"] = hits / sum(len(request.tokens) for request in requests)
    result["steps"] = steps
    return result


def timed(function, times: list[float]):
    def wrapper(*args, **kwargs):
        begin = time.thread_time()
        result = function(*args, **kwargs)
        times.append(time.thread_time() - begin)
        return result

    return wrapper


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--groups", type=int, default=57)
    parser.add_argument("--shared-tokens", type=int, default=700, help="prefix of a group")
    parser.add_argument(
        "--own-tokens", type=int, default=60, help="rest of a prompt, varied by a factor of two"
    )
    parser.add_argument("--kv-tokens", type=int, default=30_000, help="KV pool")
    parser.add_argument("--page-size", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="requests proposed per step")
    parser.add_argument(
        "--decode-steps", type=int, default=8, help="tokens decoded between two prefill batches"
    )
    parser.add_argument("--runs", type=int, default=5, help="runs per tree core, alternating")
    parser.add_argument("--cores", nargs="+", default=["rust", "python", radix_cache.BACKEND])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all runs here")
    args = parser.parse_args()

    results: dict[str, list[dict[str, float]]] = defaultdict(list)
    with server_arguments():
        radix_cache.register()
        for core in args.cores:
            run(core, args)  # compile and warm up
        for _ in range(args.runs):
            for core in args.cores:
                results[core].append(run(core, args))

    medians = {
        core: {name: statistics.median(one[name] for one in runs) for name in runs[0]}
        for core, runs in results.items()
    }
    columns = [f"{name}_us" for name in OPERATIONS] + ["tree_ms_per_request", "hit_rate", "steps"]
    print(f"{'core':<8}" + "".join(f"{name:>21}" for name in columns))
    for core, row in medians.items():
        print(f"{core:<8}" + "".join(f"{row[name]:>21.3g}" for name in columns))
        if core != args.cores[0]:
            base = medians[args.cores[0]]
            print(f"{'  ratio':<8}" + "".join(f"{row[name] / base[name]:>21.2f}" for name in columns))
    if args.json:
        arguments = {name: str(value) for name, value in vars(args).items()}
        args.json.write_text(
            json.dumps({"arguments": arguments, "medians": medians, "runs": results}, indent=1)
        )


if __name__ == "__main__":
    main()

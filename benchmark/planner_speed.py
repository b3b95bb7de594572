"""How long planning a large pool takes, and in how much memory: sort, tree, estimates, splits, whole order.

The pool mixes synthetic traces (random token ids) to a mean prompt of about 500 tokens: half WildChat-like
chats, a quarter MMLU with its 57 shared prefixes, a quarter BurstGPT. Output lengths are unknown to the
planner. No model and no engine run; compilation is done before the clock starts. The pool is made by another
process, so that the memory figure is the planner's: Python, the pool's tokens and what planning takes.

    python -m benchmark.planner_speed --requests 400000 --json planner_speed.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from benchmark.paper.models import MODELS
from benchmark.workloads import make_trace
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.order.plan import Plan
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.pool.workload import concatenate
from sglang.srt.blend.core.step.step import Running, StepLimits
from sglang.srt.blend.core.warm_up import compile_kernels

SHARES = {"wildchat": 0.5, "mmlu": 0.25, "burstgpt": 0.25}
STEP = 0.03
"""Seconds between steps: what a GPU takes for one."""

KV_CAPACITY = 440_000  # tokens: what an A100-80GB holds beside Llama-3-8B


def plan_once(
    tokens: NDArray[np.int32],
    offsets: NDArray[np.int64],
    max_new_tokens: NDArray[np.int32],
    cost: CostModel,
    seed: int,
) -> tuple[float, Plan, tuple[float, float]]:
    """Seconds to plan the pool, the plan, and the `pauses` of another."""
    planner = Planner(cost, kv_capacity=KV_CAPACITY, seed=seed)
    begin = time.perf_counter()
    planner.add(tokens, offsets, max_new_tokens=max_new_tokens)
    plan = planner.plan()
    return time.perf_counter() - begin, plan, pauses(planner)


def pauses(planner: Planner) -> tuple[float, float]:
    """What a new plan of all that waits keeps steps from doing, seconds: made in one step, and beside them.

    The second is the longest of the steps, which come every `STEP` seconds, from the one that asks for a plan
    to the one that follows it.
    """
    begin = time.perf_counter()
    planner.replan()
    at_once = time.perf_counter() - begin
    nobody = Running(np.zeros(0, np.int64), np.zeros(0, np.int64))
    planner.correct(planner.cost_model, None)  # asks for a plan
    old, longest = planner.ledger.scanner.order, 0.0
    while planner.ledger.scanner.order is old:
        begin = time.perf_counter()
        planner.begin_step(nobody, 0, StepLimits())
        longest = max(longest, time.perf_counter() - begin)
        time.sleep(STEP)
    return at_once, longest


def make_pool(requests: int, seed: int, folder: str) -> None:
    """Write the pool as .npy files: tokens, offsets, max_new_tokens."""
    parts = [make_trace(name, int(requests * share), seed=seed) for name, share in SHARES.items()]
    workload = concatenate(parts)
    workload = workload.take(np.random.default_rng(seed).permutation(len(workload)))
    for name in ("tokens", "offsets", "max_new_tokens"):
        np.save(Path(folder) / f"{name}.npy", getattr(workload, name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=400_000, help="size of the pool")
    parser.add_argument("--rounds", type=int, default=3, help="runs; medians are printed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()

    cost = CostModel(ModelShape.from_config(MODELS["llama-3-8b"].config), load_hardware("a100-80gb"))
    compile_kernels(cost)
    with tempfile.TemporaryDirectory() as folder:
        maker = multiprocessing.get_context("spawn").Process(
            target=make_pool, args=(args.requests, args.seed, folder)
        )
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("the pool could not be made, see above")
        names = ("tokens", "offsets", "max_new_tokens")
        tokens, offsets, max_new_tokens = (np.load(Path(folder) / f"{name}.npy") for name in names)

    runs = [plan_once(tokens, offsets, max_new_tokens, cost, args.seed) for _ in range(args.rounds)]
    plan = runs[0][1]
    figures = {
        "requests": len(offsets) - 1,
        "mean_prompt_tokens": round(len(tokens) / (len(offsets) - 1), 1),
        "seconds": [round(seconds, 3) for seconds, *_ in runs],
        "median_seconds": round(statistics.median(seconds for seconds, *_ in runs), 3),
        "pause_at_once_ms": round(1e3 * statistics.median(pause[0] for *_, pause in runs), 1),
        "pause_beside_ms": round(1e3 * statistics.median(pause[1] for *_, pause in runs), 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "sharing_kept": round(plan.shared_tokens / plan.possible_tokens, 5),
        "splits": plan.splits,
        "seed": args.seed,
    }
    print(
        f"{figures['requests']:,} requests, {figures['mean_prompt_tokens']} prompt tokens on average\n"
        f"planned in {figures['median_seconds']} s (median of {args.rounds}), "
        f"whole process at most {figures['peak_memory_bytes'] / 1e9:.2f} GB\n"
        f"another plan holds one step up for {figures['pause_at_once_ms']} ms; made beside the steps, "
        f"none for more than {figures['pause_beside_ms']} ms (medians)\n"
        f"sharing kept {figures['sharing_kept']:.2%} with {plan.splits:,} splits"
    )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

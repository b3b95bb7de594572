"""How near to the practical optimum any schedule could come, by the size of the trace.

    python -m benchmark.paper.bounds
    python -m benchmark.paper.bounds --engines    # what each engine could give at best, scaled traces

An answer of n tokens takes n passes. A trace that is short beside its longest answer must be spread over
that many passes, each less efficient than it could be. And a pass reads no more KV than the cache holds, so
the weights are read at least once for every cache full of KV.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from itertools import product

import numpy as np
from benchmark.paper.compare import Run, cost_model, pool_work, workload_of
from benchmark.paper.tables import FULL, SCALED, SCALED_VIDEO_TOKENS

from sglang.srt.blend.core.cost.engines import PoolWork, engine_names, practical_optimum
from sglang.srt.blend.core.cost.kv_capacity import kv_capacity
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.hardware_backend.simulated_gpu.srt_platform import STATIC_MEMORY_FRACTION

COPIES = (1, 4, 10)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmark.paper.bounds")
    parser.add_argument("--engines", action="store_true", help="compare engines instead of sizes")
    if parser.parse_args().engines:
        engines()
    else:
        sizes()


def engines() -> None:
    """Bounds of every engine for the scaled traces, with the passes that no schedule avoids."""
    print(f"| GPU, trace | {' | '.join(f'{name}, s' for name in engine_names())} | mixed / pdmux |")
    print(f"| --- {'| --- ' * (len(engine_names()) + 1)}|")
    for hardware, trace in product(("a100-80gb", "h100"), (1, 2, 3, 4)):
        run = Run(trace, "any", "mixed", SCALED, video_tokens=SCALED_VIDEO_TOKENS, hardware=hardware)
        workload, cost = workload_of(run), cost_model(run)
        pool, times = pool_work(workload, cost), StepTimeModel(cost.shape, cost.hardware)
        capacity = kv_capacity(cost.shape, cost.hardware, STATIC_MEMORY_FRACTION)
        passes = max(int(np.max(workload.output)), pool.full_passes(capacity))
        bounds = {name: practical_optimum(times, name, pool, min_steps=passes) for name in engine_names()}
        seconds = " | ".join(f"{bound:.0f}" for bound in bounds.values())
        print(f"| {hardware}, {trace} | {seconds} | {bounds['mixed'] / bounds['pdmux']:.3f}x |")


def sizes() -> None:
    """The bound of an overlapped engine by the size of the trace."""
    print(
        "| trace | requests | longest answer | optimum, s | with its longest answer | with full caches too |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for trace in (1, 2, 3, 4):
        run = Run(trace, "any", "overlapped", FULL)
        workload, cost = workload_of(run), cost_model(run)
        once = pool_work(workload, cost)
        times, longest = StepTimeModel(cost.shape, cost.hardware), int(np.max(workload.output))
        capacity = kv_capacity(cost.shape, cost.hardware, STATIC_MEMORY_FRACTION)
        for copies in COPIES:
            pool = PoolWork(*(copies * getattr(once, field.name) for field in fields(PoolWork)))
            optimum = practical_optimum(times, run.engine, pool)
            shares = [
                f"{optimum / practical_optimum(times, run.engine, pool, min_steps=passes):.1%}"
                for passes in (longest, max(longest, pool.full_passes(capacity)))
            ]
            size = copies * len(workload)
            print(f"| {trace} | {size} | {longest} | {optimum:.0f} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()

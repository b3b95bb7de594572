"""How near to the practical optimum any schedule could come, by the size of the trace.

    python -m benchmark.paper.bounds

An answer of n tokens takes n passes. A trace that is short beside its longest answer must be spread over
that many passes, each less efficient than it could be. And a pass reads no more KV than the cache holds, so
the weights are read at least once for every cache full of KV.
"""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
from benchmark.paper.compare import Run, cost_model, workload_of
from benchmark.paper.tables import FULL

from sglang.srt.blend.core.cost.engines import PoolWork, practical_optimum
from sglang.srt.blend.core.cost.kv_capacity import kv_capacity
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.hardware_backend.simulated_gpu.srt_platform import STATIC_MEMORY_FRACTION

COPIES = (1, 4, 10)


def main() -> None:
    print(
        "| trace | requests | longest answer | optimum, s | with its longest answer | with full caches too |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for trace in (1, 2, 3, 4):
        run = Run(trace, "any", "overlapped", FULL)
        workload, cost = workload_of(run), cost_model(run)
        order = workload.depth_first_order()
        once = PoolWork.of(workload.prompt[order], workload.output[order], workload.tree(cost).lcp)
        times, longest = StepTimeModel(cost.shape, cost.hardware), int(np.max(workload.output))
        capacity = kv_capacity(cost.shape, cost.hardware, STATIC_MEMORY_FRACTION)
        for copies in COPIES:
            pool = PoolWork(*(copies * getattr(once, field.name) for field in fields(PoolWork)))
            optimum = practical_optimum(times, run.engine, pool)
            shares = [
                f"{optimum / practical_optimum(times, run.engine, pool, min_steps=passes):.1%}"
                for passes in (longest, max(longest, math.ceil(pool.kv_tokens / capacity)))
            ]
            size = copies * len(workload)
            print(f"| {trace} | {size} | {longest} | {optimum:.0f} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()

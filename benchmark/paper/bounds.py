"""How near to the practical optimum any schedule could come, by the size of the trace.

    python -m benchmark.paper.bounds

An answer of n tokens takes n passes. A trace that is short beside its longest answer must be spread over
that many passes, each less efficient than it could be.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from benchmark.paper.compare import Run, cost_model, workload_of

from sglang.srt.blend.core.engines import PoolWork, practical_optimum
from sglang.srt.blend.core.step_time import StepTimeModel

REQUESTS = 40_000
COPIES = (1, 4, 10)


def main() -> None:
    print("| trace | requests | longest answer | optimum, s | with its longest answer, s | share |")
    print("| --- | --- | --- | --- | --- | --- |")
    for trace in (1, 2, 3, 4):
        run = Run(trace, "any", "overlapped", REQUESTS)
        workload, cost = workload_of(run), cost_model(run)
        order = workload.depth_first_order()
        once = PoolWork.of(workload.prompt[order], workload.output[order], workload.tree(cost).lcp)
        times, longest = StepTimeModel(cost.shape, cost.hardware), int(np.max(workload.output))
        for copies in COPIES:
            pool = PoolWork(*(copies * getattr(once, field.name) for field in fields(PoolWork)))
            optimum = practical_optimum(times, run.engine, pool)
            bound = practical_optimum(times, run.engine, pool, min_steps=longest)
            size = copies * len(workload)
            print(f"| {trace} | {size} | {longest} | {optimum:.0f} | {bound:.0f} | {optimum / bound:.1%} |")


if __name__ == "__main__":
    main()

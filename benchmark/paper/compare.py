"""Policies and engines on one trace: modelled time, sharing kept, share of the practical optimum."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from benchmark.paper.models import MODELS
from benchmark.workloads import PAPER_TRACES, MixTarget, synthesise
from benchmark.workloads.traces import with_video_tokens

from sglang.srt.blend.core.cost_model import CostModel
from sglang.srt.blend.core.engines import PoolWork, practical_optimum
from sglang.srt.blend.core.hardware import load_hardware
from sglang.srt.blend.core.model_shape import ModelShape
from sglang.srt.blend.core.step_time import StepTimeModel
from sglang.srt.blend.core.workload import Workload


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation; everything that decides its result.

    Attributes:
        trace: 1 to 4, the paper's headline traces; 0 is a mix of its own density and sharing.
        chunk: tokens per prefill chunk.
        video_tokens: mean answer of the memory trace; the paper normalises to 16K.
        variant: a name of `VARIANTS`, what is changed about the policy or about what it knows.
    """

    trace: int
    policy: str
    engine: str
    requests: int
    model: str = "llama-3-8b"
    hardware: str = "a100-80gb"
    compute: str = "burstgpt"
    chunk: int = 8192
    seed: int = 0
    video_tokens: int = 16384
    density: float = 0.0
    sharing: float = 0.0
    variant: str = ""

    @property
    def target(self) -> MixTarget:
        return PAPER_TRACES[self.trace - 1] if self.trace else MixTarget(self.density, self.sharing)

    @property
    def name(self) -> str:
        """Of the workload, for tables."""
        return f"#{self.trace}" if self.trace else f"{self.density:.2f}/{self.sharing:.0%}"


VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "no split": {"blend_sharing_budget": 1.0},
    "no pace": {"blend_engine": "alternating"},
    "no sample": {"blend_sample_fraction": 0.0},
    "sample 0.1%": {"blend_sample_fraction": 0.001},
    "sample 10%": {"blend_sample_fraction": 0.1},
    "known lengths": {},
}
"""Server arguments of each ablation; "known lengths" tells the policy every output length instead."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a run and what came out.

    Attributes:
        seconds: modelled.
        throughput: tokens/s, shared tokens included.
        optimum_share: practical optimum of the engine / seconds.
        bound_share: the same with one pass for each token of the longest answer, which no schedule avoids.
        sharing_reached, sharing_possible: share of prompt tokens not computed, and by a depth-first walk at
            best.
        density_reached: of the mix, which approaches its target.
        longest_answer: output tokens of the longest request.
        python_seconds: CPU time of scheduling.
    """

    run: Run
    seconds: float
    throughput: float
    optimum_share: float
    bound_share: float
    sharing_reached: float
    sharing_possible: float
    density_reached: float
    steps: int
    retractions: int
    longest_answer: int
    python_seconds: float

    def record(self) -> dict[str, object]:
        """Flat, for CSV and JSON."""
        flat = asdict(self)
        return {**flat.pop("run"), **flat}


def workload_of(run: Run) -> Workload:
    workload = synthesise(
        run.target,
        run.requests,
        cost_model(run),
        compute=run.compute,
        seed=run.seed,
        specs=with_video_tokens(run.video_tokens),
    )
    if run.variant == "known lengths":
        known = np.ones(len(workload), np.bool_)
        return replace(workload, known=known, max_new_tokens=workload.output)
    return workload


def execute(run: Run) -> Row:
    """Simulate in this process, started with SGLANG_PLATFORM=simulated_gpu."""
    from sglang.srt.hardware_backend.simulated_gpu.simulate import simulate

    model, cost = MODELS[run.model], cost_model(run)
    workload = workload_of(run)
    statistics = workload.statistics(cost)
    result = simulate(
        workload,
        policy=run.policy,
        engine=run.engine,
        hardware=run.hardware,
        model_config=model.config,
        tensor_parallel=model.tensor_parallel,
        seed=run.seed,
        chunked_prefill_size=run.chunk,
        **VARIANTS[run.variant],
    )
    order = workload.depth_first_order()
    pool = PoolWork.of(workload.prompt[order], workload.output[order], workload.tree(cost).lcp)
    times, longest = StepTimeModel(cost.shape, cost.hardware), int(workload.output.max())
    return Row(
        run=run,
        seconds=result.seconds,
        throughput=result.throughput,
        optimum_share=practical_optimum(times, run.engine, pool) / result.seconds,
        bound_share=practical_optimum(times, run.engine, pool, min_steps=longest) / result.seconds,
        sharing_reached=result.sharing,
        sharing_possible=statistics.sharing,
        density_reached=statistics.density,
        steps=len(result.steps),
        retractions=result.retractions,
        longest_answer=longest,
        python_seconds=result.python_seconds,
    )


def silence() -> None:
    """Send what imports and a scheduler log nowhere, for the life of a process that only computes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def cost_model(run: Run) -> CostModel:
    model = MODELS[run.model]
    shape = ModelShape.from_config(model.config, tensor_parallel=model.tensor_parallel)
    return CostModel(shape, load_hardware(run.hardware))

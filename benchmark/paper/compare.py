"""Policies and engines on one trace: modelled time, sharing kept, share of the practical optimum."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from benchmark.paper.models import MODELS
from benchmark.workloads import PAPER_TRACES, MixTarget, synthesise

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
        trace: 1 to 4, the paper's headline traces.
        chunk: tokens per prefill chunk.
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

    @property
    def target(self) -> MixTarget:
        return PAPER_TRACES[self.trace - 1]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a run and what came out.

    Attributes:
        seconds: modelled.
        throughput: tokens/s, shared tokens included.
        optimum_share: practical optimum of the engine / seconds.
        bound_share: the same with one pass for each token of the longest answer, which no schedule avoids.
        sharing, sharing_possible: share of prompt tokens not computed, and by a depth-first walk at best.
        longest_answer: output tokens of the longest request.
        python_seconds: CPU time of scheduling.
    """

    run: Run
    seconds: float
    throughput: float
    optimum_share: float
    bound_share: float
    sharing: float
    sharing_possible: float
    density: float
    steps: int
    retractions: int
    longest_answer: int
    python_seconds: float

    def record(self) -> dict[str, object]:
        """Flat, for CSV and JSON."""
        flat = asdict(self)
        return {**flat.pop("run"), **flat}


def workload_of(run: Run) -> Workload:
    return synthesise(run.target, run.requests, cost_model(run), compute=run.compute, seed=run.seed)


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
        sharing=result.sharing,
        sharing_possible=statistics.sharing,
        density=statistics.density,
        steps=len(result.steps),
        retractions=result.retractions,
        longest_answer=longest,
        python_seconds=result.python_seconds,
    )


def cost_model(run: Run) -> CostModel:
    model = MODELS[run.model]
    shape = ModelShape.from_config(model.config, tensor_parallel=model.tensor_parallel)
    return CostModel(shape, load_hardware(run.hardware))

"""Policies and engines on one trace: modelled time, sharing kept, share of the practical optimum."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmark.paper.models import MODELS
from benchmark.paper.orders import batchllm_order, density_order
from benchmark.workloads import PAPER_TRACES, MixTarget, synthesise
from benchmark.workloads.jobs import make_job
from benchmark.workloads.traces import with_video_tokens
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.engines import PoolWork, load_engine, practical_optimum
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.kv_capacity import kv_capacity
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.pdmux import PdmuxTimes
from sglang.srt.blend.core.cost.pdmux_choice import choose_config
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork
from sglang.srt.blend.core.pool.output_length import LengthEstimator
from sglang.srt.blend.core.pool.workload import Workload
from sglang.srt.blend.runtime.pdmux_config import write_pdmux_config
from sglang.srt.hardware_backend.simulated_gpu.srt_platform import STATIC_MEMORY_FRACTION

if TYPE_CHECKING:
    from sglang.srt.blend.core.order.plan import PlannerOptions
    from sglang.srt.blend.runtime.arguments import BlendOptions
    from sglang.srt.hardware_backend.simulated_gpu.simulate import SimulationResult


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation; everything that decides its result.

    Attributes:
        trace: 1 to 4, the paper's headline traces; 0 is a mix of its own density and sharing.
        policy: as `simulate` knows them, "batchllm" (see `orders`), or "lpm-unlimited": upstream's longest
            prefix match, which otherwise gives up while more than 128 requests wait.
        video_tokens: mean answer of the memory trace; the paper normalises to 16K.
        variant: a name of `VARIANTS`, what is changed about the policy or about what it knows.
        job: a name of `JOBS`, in place of a trace; its size is its own.
    """

    trace: int
    policy: str
    engine: str
    requests: int
    model: str = "llama-3-8b"
    hardware: str = "a100-80gb"
    compute: str = "burstgpt"
    seed: int = 0
    video_tokens: int = 16384
    density: float = 0.0
    sharing: float = 0.0
    variant: str = ""
    job: str = ""

    @property
    def target(self) -> MixTarget:
        return PAPER_TRACES[self.trace - 1] if self.trace else MixTarget(self.density, self.sharing)

    @property
    def name(self) -> str:
        """Of the workload, for tables."""
        mix = f"#{self.trace}" if self.trace else f"{self.density:.2f}/{self.sharing:.0%}"
        return self.job or mix


WRONG = {"estimates / 4": 0.25, "estimates / 2": 0.5, "estimates x 2": 2.0, "estimates x 4": 4.0}
"""Ablations whose estimates of unknown output lengths are so many times what samples say."""

CHUNK = 8192
"""Prefill tokens per step, unless a variant says otherwise."""

CHUNKS = {f"chunks of {chunk}": {"chunked_prefill_size": chunk} for chunk in (1024, 2048, 4096, 16384)}
"""Variants of the baselines: see `tables.chunks`."""

FITTED = "fitted"
"""Begins the name of variants in which the GPU is divided as `choose_config` says for the pool."""

PDMUX: dict[str, dict[str, Any]] = {
    "batches of 4096": {"max_prefill_tokens": 4096},
    FITTED: {},
    f"{FITTED}, batches of 4096": {"max_prefill_tokens": 4096},
}
"""Variants of the pdmux engine; without one it has upstream's divisions and batches of 16,384 tokens."""

TOLD: dict[str, dict[str, Any]] = {
    f"told {name}": {"blend_hardware": name} for name in ("h100", "l40s", "b200")
}
"""Variants whose planner takes the GPU for another one, until steps tell it."""

TOLD_FOR_GOOD = {f"{name}, not measured": {**args, "blend_measure": "off"} for name, args in TOLD.items()}
"""The same without a look at the steps."""

IN_LINE: dict[str, dict[str, Any]] = {
    "depth first, no pace": {"blend_engine": "alternating"},
    "depth first": {},
    "longest first": {},
}
"""Variants in which requests stand in one line, under blend's forecast of memory."""

VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "no split": {"blend_sharing_budget": 1.0},
    "no pace": {"blend_engine": "alternating"},
    "no sample": {"blend_sample_fraction": 0.0},
    "sample 0.1%": {"blend_sample_fraction": 0.001},
    "sample 10%": {"blend_sample_fraction": 0.1},
    "sample 100%": {"blend_sample_fraction": 1.0},
    "known lengths": {},
    "one end": {},
    **{name: {} for name in WRONG},
    **IN_LINE,
    **CHUNKS,
    **PDMUX,
    **TOLD,
    **TOLD_FOR_GOOD,
}
"""Server arguments of each variant. "known lengths" tells the policy every output length; "one end" is its
order without partition and second scanner, first come first served from the compute side."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a run and what came out.

    Attributes:
        seconds: modelled.
        throughput: tokens/s, shared tokens included.
        optimum_share: practical optimum of the engine / seconds.
        bound_share: the same with the passes that no schedule avoids: one for each token of the longest
            answer, and as many as it takes to read all KV with a cache that is full in each.
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


WORK = ("prefill_tokens", "decode_rows", "kv_tokens", "prefill_pairs", "finished_prefills")
"""Columns of a step log that the time model wants."""


def workload_of(run: Run) -> Workload:
    if run.job:
        workload = make_job(run.job, seed=run.seed)
    else:
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


def batches(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    """Runs that one simulation answers, together.

    Only `blend` looks at the engine's times. Any other policy makes the same steps whether their operators
    overlap or not; without mixed passes the steps are others. Those of `blend` take longest and go first, so
    that no process has one to itself at the end.
    """
    groups: dict[Run, list[Run]] = {}
    for run in runs:
        shared = run.policy != "blend" and run.engine in ("mixed", "overlapped")
        groups.setdefault(replace(run, engine="mixed") if shared else run, []).append(run)
    return sorted(map(tuple, groups.values()), key=lambda group: group[0].policy != "blend")


def simulated(run: Run) -> tuple[Workload, SimulationResult]:
    """Simulate in this process, started with SGLANG_PLATFORM=simulated_gpu."""
    from sglang.srt.blend.runtime import startup
    from sglang.srt.hardware_backend.simulated_gpu.simulate import simulate
    from sglang.srt.managers import schedule_policy

    model, cost = MODELS[run.model], cost_model(run)
    workload, policy = workload_of(run), run.policy
    if policy == "batchllm":
        workload, policy = workload.take(batchllm_order(workload, cost)), "fcfs"
    if run.variant == "one end":
        workload, policy = workload.take(density_order(workload, cost)), "fcfs"
    if run.variant in IN_LINE:
        startup._planner_options = in_line(run.variant.split()[0])
    if run.variant in WRONG:
        LengthEstimator.expected = wrong_by(WRONG[run.variant])  # type: ignore[method-assign]
    if policy == "lpm-unlimited":
        # Upstream serves first come first while more than this many wait.
        schedule_policy.WAITING_QUEUE_PREFIX_MATCH_MAX, policy = len(workload), "lpm"
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(
            workload,
            policy=policy,
            engine=run.engine,
            hardware=run.hardware,
            model_config=model.config,
            tensor_parallel=model.tensor_parallel,
            seed=run.seed,
            **{"chunked_prefill_size": -1 if run.engine == "pdmux" else CHUNK, **VARIANTS[run.variant]},
            **_fitted(run, workload, Path(folder)),
        )
    return workload, result


def _fitted(run: Run, workload: Workload, folder: Path) -> dict[str, str]:
    """Server arguments for the division that suits the pool, written to a file; none for other variants."""
    if not run.variant.startswith(FITTED):
        return {}
    cost, path = cost_model(run), folder / "pdmux.yaml"
    chosen = choose_config(
        PdmuxTimes(StepTimeModel(cost.shape, cost.hardware)),
        pool_work(workload, cost),
        kv_capacity=kv_capacity(cost.shape, cost.hardware, STATIC_MEMORY_FRACTION),
        longest=int(workload.output.max()),
    )
    write_pdmux_config(path, chosen.config)
    return {"pdmux_config_path": str(path)}


def pool_work(workload: Workload, cost: CostModel) -> PoolWork:
    """What a trace does if every shared prefix is computed once."""
    order = workload.depth_first_order()
    return PoolWork.of(workload.prompt[order], workload.output[order], workload.tree(cost).lcp)


def wrong_by(factor: float) -> Callable[..., NDArray[np.float64]]:
    """`LengthEstimator.expected` whose answers have `factor` times as much left as answers say."""
    right = LengthEstimator.expected

    def expected(
        estimator: LengthEstimator, group: ArrayLike, generated: ArrayLike, cap: ArrayLike
    ) -> NDArray[np.float64]:
        before = np.asarray(generated, np.float64)
        left = right(estimator, group, generated, cap) - before
        return np.clip(before + np.maximum(factor * left, 1.0), 1.0, cap)

    return expected


def in_line(name: str) -> Callable[[BlendOptions], PlannerOptions]:
    """`startup._planner_options` of a planner whose requests stand in the line of this name."""
    from sglang.srt.blend.runtime import startup

    right = startup._planner_options
    return lambda options: replace(right(options), line=name)


def execute(runs: tuple[Run, ...]) -> list[Row]:
    """Simulate one of `batches` in this process, started with SGLANG_PLATFORM=simulated_gpu."""
    cost = cost_model(runs[0])
    workload, result = simulated(runs[0])
    statistics = workload.statistics(cost)
    pool = pool_work(workload, cost)
    times, longest = StepTimeModel(cost.shape, cost.hardware), int(workload.output.max())
    passes = max(longest, pool.full_passes(result.kv_capacity))
    work = StepWork(**{name: result.steps[name] for name in WORK})
    rows = []
    for one in runs:
        seconds = result.seconds
        if one.engine != "pdmux":  # whose turns depend on what was launched before
            seconds = float(load_engine(one.engine)(times, work).sum())
        rows.append(
            Row(
                run=one,
                seconds=seconds,
                throughput=(result.prompt_tokens + result.output_tokens) / seconds,
                optimum_share=practical_optimum(times, one.engine, pool) / seconds,
                bound_share=practical_optimum(times, one.engine, pool, min_steps=passes) / seconds,
                sharing_reached=result.sharing,
                sharing_possible=statistics.sharing,
                density_reached=statistics.density,
                steps=len(result.steps),
                retractions=result.retractions,
                longest_answer=longest,
                python_seconds=result.python_seconds,
            )
        )
    return rows


def cost_model(run: Run) -> CostModel:
    model = MODELS[run.model]
    shape = ModelShape.from_config(model.config, tensor_parallel=model.tensor_parallel)
    return CostModel(shape, load_hardware(run.hardware))

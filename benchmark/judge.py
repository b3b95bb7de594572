"""What a judge foresees of an order, against what SGLang's scheduler then takes in that order.

    python -m benchmark.judge --json build/judge.json
    python -m benchmark.judge --engine mixed --pools 5
    python -m benchmark.judge --real --jobs 2

Pools of `benchmark.small_pools`, but with every length known, so that forecasts are of the schedule and not
of the answers. Each pool runs in the order of density and in each line of `core/order/lines.py`, on a
simulated A100-80GB (Llama-3-8B); seconds are modelled. Printed for each engine: how far off the judge was
(median and 90th percentile of |foreseen / taken - 1|), and how much longer than the best of the orders those
take that a judge without margins would choose, and that of density.

With --real it is the jobs of `benchmark.paper real` (A100-40GB) on the engines that can be paced, by density,
with prefill spread over the passes or done as soon as there is room: the other question for a judge.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from benchmark import provenance
from benchmark.paper.arguments import add_jobs, at_least_one
from benchmark.paper.compare import WORK, Run, cost_model, in_line, workload_of
from benchmark.paper.models import MODELS
from benchmark.paper.tables import TABLES
from benchmark.small_pools import CHUNK, ENGINES, HARDWARE, modelled_seconds, random_pool, simulate_pool
from benchmark.workloads.jobs import JOBS
from tqdm import tqdm

from sglang.batch.plan.schedules import simulator_processes
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.engines import load_engine
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.kv_capacity import kv_capacity
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork
from sglang.srt.blend.core.order.judge import Judge
from sglang.srt.blend.core.order.plan import PlannerOptions
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.pool.workload import Workload
from sglang.srt.hardware_backend.simulated_gpu.srt_platform import STATIC_MEMORY_FRACTION

DENSITY = "density"
ORDERS = (DENSITY, "longest", "depth", "arrival")
PACED, AT_ONCE = "paced", "at once"

_PART = 10
# Pools that a process runs before its results are seen.


@dataclass(frozen=True, slots=True)
class Row:
    """A pool on one engine; seconds by order or pace, as they were foreseen and as they were taken.

    The first of them is what is done without a judge.
    """

    engine: str
    pool: int | str
    requests: int
    foreseen: dict[str, float]
    taken: dict[str, float]

    @property
    def error(self) -> list[float]:
        return [abs(self.foreseen[name] / seconds - 1.0) for name, seconds in self.taken.items()]

    @property
    def judged(self) -> float:
        """How much longer the order that was foreseen to be the best takes than the best."""
        return self.taken[min(self.foreseen, key=self.foreseen.__getitem__)] / min(self.taken.values()) - 1.0

    @property
    def without(self) -> float:
        """The same of what is done without a judge."""
        return next(iter(self.taken.values())) / min(self.taken.values()) - 1.0


@dataclass(frozen=True, slots=True)
class JudgeAtOnce(Judge):
    """Foresees seconds of an order whose prefill is not spread."""

    @property
    def paced(self) -> bool:
        return False


def known_pool(seed: int, number: int) -> tuple[Workload, int]:
    """A random small pool whose requests fix their lengths, and its KV tokens."""
    workload, _, capacity = random_pool(seed, number)
    known = np.ones(len(workload), np.bool_)
    return replace(workload, known=known, max_new_tokens=workload.output), capacity


def foresee(workload: Workload, capacity: int, judge: Judge, cost: CostModel, line: str = "") -> float:
    """Seconds that a judge foresees of an order before anybody has begun."""
    planner = Planner(cost, kv_capacity=capacity, options=PlannerOptions(line=line))
    planner.add(
        workload.tokens,
        workload.offsets,
        max_new_tokens=workload.max_new_tokens,
        known_output=workload.output,
    )
    planner.replan()
    return planner.foresee(judge)


def run_some(engine: str, seed: int, numbers: Sequence[int]) -> list[Row]:
    """Some pools, in a process on the simulated GPU's platform."""
    logging.disable(logging.ERROR)  # each scheduler's start
    return [run(engine, *known_pool(seed, number), number=number) for number in numbers]


def run(engine: str, workload: Workload, capacity: int, *, number: int) -> Row:
    """One pool in every order."""
    from sglang.srt.blend.runtime import startup

    shape, hardware = ModelShape.from_config(MODELS["llama-3-8b"].config), load_hardware(HARDWARE)
    judge = Judge(StepTimeModel(shape, hardware), engine, CHUNK)
    options, foreseen, taken = startup._planner_options, {}, {}
    startup._judge = lambda *_: None  # type: ignore[assignment]
    for name in ORDERS:
        line = "" if name == DENSITY else name
        foreseen[name] = round(foresee(workload, capacity, judge, CostModel(shape, hardware), line), 4)
        startup._planner_options = in_line(line)
        result = simulate_pool(workload, "blend", engine, capacity)
        startup._planner_options = options
        taken[name] = round(modelled_seconds(result, engine), 4)
    return Row(engine, number, len(workload), foreseen, taken)


def real_job(job: str, seed: int) -> tuple[Run, Workload]:
    """A job of the table of jobs whose requests fix their lengths."""
    run = next(run for run in TABLES["real"]() if run.job == job)
    run = replace(run, seed=seed, variant="known lengths")
    return run, workload_of(run)


def foresee_real(engine: str, run: Run, workload: Workload) -> dict[str, float]:
    """Seconds that a judge foresees of a job by density, paced and not."""
    cost = cost_model(run)
    capacity = kv_capacity(cost.shape, cost.hardware, STATIC_MEMORY_FRACTION)
    times = StepTimeModel(cost.shape, cost.hardware)
    return {
        name: round(foresee(workload, capacity, judge(times, engine, CHUNK), cost), 4)
        for name, judge in ((PACED, Judge), (AT_ONCE, JudgeAtOnce))
    }


def run_real(engine: str, job: str, seed: int) -> list[Row]:
    """A job of the table of jobs by density, paced and not."""
    from sglang.srt.blend.runtime import startup
    from sglang.srt.hardware_backend.simulated_gpu.simulate import simulate

    logging.disable(logging.ERROR)
    startup._judge = lambda *_: None  # type: ignore[assignment]
    (run, workload), taken = real_job(job, seed), {}
    for name, believed in ((PACED, engine), (AT_ONCE, "alternating")):
        result = simulate(
            workload,
            policy="blend",
            engine=engine,
            hardware=run.hardware,
            model_config=MODELS[run.model].config,
            chunked_prefill_size=CHUNK,
            blend_engine=believed,  # where nothing is paced
        )
        steps = StepWork(**{name: result.steps[name] for name in WORK})
        times = StepTimeModel(cost_model(run).shape, load_hardware(run.hardware))
        taken[name] = round(float(load_engine(engine)(times, steps).sum()), 4)
    return [Row(engine, job, len(workload), foresee_real(engine, run, workload), taken)]


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """Of the pools of one engine."""
    errors = np.concatenate([row.error for row in rows])
    return {
        "error, median": float(np.median(errors)),
        "error, 90th percentile": float(np.quantile(errors, 0.9)),
        "longer than the best, judged": float(np.mean([row.judged for row in rows])),
        "longer than the best, without": float(np.mean([row.without for row in rows])),
    }


def report(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each engine."""
    for engine in dict.fromkeys(row.engine for row in rows):
        of_engine = [row for row in rows if row.engine == engine]
        shown = "  ".join(f"{name} {value:.1%}" for name, value in figures(of_engine).items())
        yield f"{engine:<12}{len(of_engine):>4} pools  {shown}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.judge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pools", type=at_least_one, default=50, help="of each engine")
    parser.add_argument(
        "--engine", action="append", choices=ENGINES, help="may be repeated; default is all that can"
    )
    parser.add_argument("--real", action="store_true", help="jobs, paced and not, in place of pools")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every pool")
    add_jobs(parser)
    arguments = parser.parse_args()
    if arguments.real and ENGINES[0] in (arguments.engine or ()):
        parser.error(f"--real: prefill of {ENGINES[0]} passes cannot be spread")
    engines, rows = arguments.engine or (ENGINES[1:] if arguments.real else ENGINES), []
    parts = [range(begin, min(begin + _PART, arguments.pools)) for begin in range(0, arguments.pools, _PART)]
    with simulator_processes(arguments.jobs) as executor:
        tasks = [
            executor.submit(run_real, engine, part, arguments.seed)
            if arguments.real
            else executor.submit(run_some, engine, arguments.seed, part)
            for engine in engines
            for part in (JOBS if arguments.real else parts)
        ]
        number = len(engines) * (len(JOBS) if arguments.real else arguments.pools)
        with tqdm(total=number, unit="pool", smoothing=0) as progress:
            for task in tasks:
                rows += task.result()
                progress.update(len(rows) - progress.n)
    print("\n".join(report(rows)))
    if arguments.json is not None:
        told = {
            "command": shlex.join(["python", "-m", "benchmark.judge", *sys.argv[1:]]),
            "commit": provenance.commit(),
            "seed": arguments.seed,
            "figures": {engine: figures([row for row in rows if row.engine == engine]) for engine in engines},
            "pools": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

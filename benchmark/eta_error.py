"""How wrong the ETA of `sglang-batch run` is: relative errors a quarter, half and three quarters into a run.

    python -m benchmark.eta_error --json benchmark/results/eta_error.json

The paper's four traces and two mixes whose answers vary much, each scaled down, run through SGLang's
scheduler on a simulated GPU: under blend, whose ETA is modelled, and (two) under fcfs, whose ETA follows the
rate of lines. The state that a run polls is taken once a simulated second. Time passes as the planner's own
model has it, so these errors come from schedules and unknown lengths; what a wrong model of the hardware
adds is seen with --recorded, which takes the polls of a real run from its --report.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from benchmark import provenance
from benchmark.paper.arguments import add_jobs
from benchmark.paper.compare import CHUNK, Run, workload_of
from benchmark.paper.models import MODELS
from tqdm import tqdm

from sglang.batch.plan.schedules import simulator_processes
from sglang.batch.run.eta import Eta, ModelledEta, PoolState, rate_eta
from sglang.batch.run.run_progress import pool_state

FRACTIONS = (0.25, 0.5, 0.75)
"""Of the run, at which the ETA is looked at."""

REQUESTS, VIDEO_TOKENS = 1_000, 2_048
"""Requests of a workload, about, and mean tokens of its long answers."""

POLL = 1.0
"""Simulated seconds between two polls."""


@dataclass(frozen=True)
class Observed:
    """A run that is over.

    Attributes:
        seconds: that it took.
        finished: second at which each line ended, ascending.
        polls: second and state of each poll; empty under fcfs.
    """

    name: str
    policy: str
    seconds: float
    finished: tuple[float, ...]
    polls: tuple[tuple[float, PoolState], ...]


@dataclass(frozen=True)
class Error:
    """How wrong an ETA was.

    Attributes:
        relative: (ETA - real) / real.
        inside: whether the real end lay between low and high.
    """

    name: str
    policy: str
    fraction: float
    relative: float
    inside: bool


def runs(seed: int) -> list[Run]:
    """The simulations."""
    common = {"policy": "blend", "engine": "overlapped", "requests": REQUESTS, "video_tokens": VIDEO_TOKENS}
    traces = [Run(trace, **common, seed=seed) for trace in (1, 2, 3, 4)]
    mixes = [
        Run(0, **common, compute=compute, density=1.1, sharing=sharing, seed=seed)
        for compute, sharing in (("sharegpt", 0.15), ("wildchat", 0.35))
    ]
    baseline = [replace(run, policy="fcfs", engine="mixed") for run in (traces[0], traces[3])]
    return [*traces, *mixes, *baseline]


def observe(run: Run) -> Observed:
    """Simulate in this process, started with SGLANG_PLATFORM=simulated_gpu, and poll."""
    from sglang.srt.blend.runtime.metrics import internal_state
    from sglang.srt.hardware_backend.simulated_gpu import lone_scheduler
    from sglang.srt.hardware_backend.simulated_gpu.hooks import device_of
    from sglang.srt.hardware_backend.simulated_gpu.simulate import simulate

    polls: list[tuple[float, PoolState]] = []
    step = lone_scheduler.step

    def polled(scheduler: Any) -> Any:
        batch, clock = step(scheduler), device_of(scheduler.tp_worker).clock
        if run.policy == "blend" and (not polls or clock >= polls[-1][0] + POLL):
            polls.append((clock, pool_state(internal_state(scheduler.blend))))
        return batch

    model = MODELS[run.model]
    with mock.patch.object(lone_scheduler, "step", polled):
        result = simulate(
            workload_of(run),
            policy=run.policy,
            engine=run.engine,
            hardware=run.hardware,
            model_config=model.config,
            tensor_parallel=model.tensor_parallel,
            seed=run.seed,
            chunked_prefill_size=CHUNK,
        )
    name = run.name if run.trace else f"{run.compute} {run.name}"
    return Observed(name, run.policy, result.seconds, tuple(sorted(result.finished.tolist())), tuple(polls))


def recorded(path: Path) -> Observed:
    """Read the polls of a real run from the report that `sglang-batch run --report` wrote."""
    report = json.loads(path.read_text())
    polls = [
        (moment["seconds"], PoolState(*(moment[field.name] for field in fields(PoolState))))
        for moment in report["blend"]["moments"]
        if moment["done"] is not None
    ]
    return Observed(path.stem, report["policy"], polls[-1][0], (), tuple(polls))


def errors(observed: Observed) -> Iterator[Error]:
    """Predict the end of a run at the fractions of it."""
    for fraction in FRACTIONS:
        now = fraction * observed.seconds
        eta, real = predict(observed, now), observed.seconds - now
        if eta is not None:
            relative = round(eta.seconds / real - 1, 4)
            yield Error(observed.name, observed.policy, fraction, relative, eta.low <= real <= eta.high)


def predict(observed: Observed, now: float) -> Eta | None:
    """The ETA that a person would have seen."""
    if not observed.polls:
        done = sum(second <= now for second in observed.finished)
        return rate_eta(now, done, len(observed.finished) - done)
    modelled = ModelledEta()
    for seconds, state in observed.polls:
        if seconds <= now:
            modelled.observe(seconds, state)
    return modelled.eta(now, submitted=1, beyond=0)


def table(found: Sequence[Error]) -> list[dict[str, Any]]:
    """Sum up each policy at each fraction."""
    rows = []
    for policy in dict.fromkeys(error.policy for error in found):
        for fraction in FRACTIONS:
            some = [error for error in found if (error.policy, error.fraction) == (policy, fraction)]
            sizes = [abs(error.relative) for error in some]
            rows.append(
                {
                    "policy": policy,
                    "fraction": fraction,
                    "runs": len(some),
                    "median": round(median(sizes), 4),
                    "largest": max(sizes),
                    "inside": sum(error.inside for error in some),
                }
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.eta_error",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_jobs(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recorded", type=Path, action="append", default=[], metavar="REPORT")
    parser.add_argument("--only-recorded", action="store_true", help="simulate nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every error and the table")
    arguments = parser.parse_args()
    chosen = [] if arguments.only_recorded else runs(arguments.seed)
    with simulator_processes(arguments.jobs) as executor:
        futures = [executor.submit(observe, run) for run in chosen]
        done = [future.result() for future in tqdm(as_completed(futures), total=len(futures), unit="run")]
    found = [error for one in done for error in errors(one)]
    real = [error for path in arguments.recorded for error in errors(recorded(path))]
    rows = table(found) if found else []
    for row in rows:
        print(
            f"{row['policy']:<8}{row['fraction']:>5.0%} of the run: median {row['median']:>6.1%}, largest"
            f" {row['largest']:>6.1%}, {row['inside']} of {row['runs']} within the range"
        )
    for error in real:
        print(f"{error.name:<8}{error.fraction:>5.0%} of the run: {error.relative:+.1%}")
    if arguments.json is not None:
        written = {
            "command": f"python -m benchmark.eta_error {' '.join(sys.argv[1:])}",
            "commit": provenance.commit(),
            "seed": arguments.seed,
            "table": rows,
            "errors": [asdict(error) for error in found],
            "recorded": [asdict(error) for error in real],
        }
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Use of compute and memory over simulated time, depth-first order and blend (paper Figure 10).

    python -m benchmark.paper.resources --jobs 2

Writes resources-TRACE.png and .csv: shares of the peak FLOP/s and of the peak bandwidth. Simulated.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark import provenance
from benchmark.paper import report
from benchmark.paper.arguments import add_jobs, at_least_one
from benchmark.paper.compare import WORK, Run, cost_model, simulated
from benchmark.paper.tables import SCALED, SCALED_VIDEO_TOKENS
from benchmark.workloads import ImpossibleMix
from tqdm import tqdm

from sglang.batch.plan.schedules import simulator_processes
from sglang.batch.plan.timeline import Timeline, timeline
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.step_time import StepWork

POLICIES = ("dfs", "blend")
TRACES = (1, 2, 3, 4)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.paper.resources", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--trace", type=int, action="append", choices=TRACES, help="only this one")
    parser.add_argument("--engine", choices=("mixed", "overlapped"), default="overlapped")
    parser.add_argument("--requests", type=at_least_one, default=SCALED, help="of each trace, about")
    parser.add_argument("--video-tokens", type=at_least_one, default=SCALED_VIDEO_TOKENS)
    add_jobs(parser)
    parser.add_argument("--out", type=Path, default=Path("benchmark/results/paper"))
    arguments = parser.parse_args()
    runs = [
        Run(trace, policy, arguments.engine, arguments.requests, video_tokens=arguments.video_tokens)
        for trace in arguments.trace or TRACES
        for policy in POLICIES
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    commit = provenance.commit()
    with simulator_processes(arguments.jobs) as executor:
        lines = iter(tqdm(executor.map(use, runs), total=len(runs), unit="simulation"))
        for pair in zip(runs[::2], runs[1::2], strict=True):
            try:
                uses = [(run, next(lines)) for run in pair]
            except ImpossibleMix as error:
                raise SystemExit(f"error: {error}") from None
            name = arguments.out / f"resources-{pair[0].trace}"
            report.write_csv(
                name.with_suffix(".csv"),
                [{**row, "commit": commit} for run, line in uses for row in records(run, line)],
            )
            draw(name.with_suffix(".png"), uses)
            for run, line in uses:
                compute, memory = (sum(part) / len(part) for part in (line.compute, line.memory))
                tqdm.write(
                    f"{run.name} {run.policy:<6}{run.engine}: {compute:.1%} of peak FLOP/s, "
                    f"{memory:.1%} of bandwidth"
                )


def records(run: Run, line: Timeline) -> Iterator[dict[str, Any]]:
    """One row per stretch of a run; `seconds` is where the stretch begins."""
    for stretch, (compute, memory) in enumerate(zip(line.compute, line.memory, strict=True)):
        yield {
            "trace": run.trace,
            "policy": run.policy,
            "engine": run.engine,
            "requests": run.requests,
            "video_tokens": run.video_tokens,
            "seed": run.seed,
            "seconds": round(stretch * line.stretch, 4),
            "compute": compute,
            "memory": memory,
        }


def use(run: Run) -> Timeline:
    """Simulate in this process, started with SGLANG_PLATFORM=simulated_gpu."""
    cost = cost_model(run)
    steps = simulated(run)[1].steps
    work = StepWork(**{name: steps[name] for name in WORK})
    return timeline(steps["seconds"], work, cost.shape, load_hardware(run.hardware))


def draw(path: Path, uses: list[tuple[Run, Timeline]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(uses), sharex=True, sharey=True, figsize=(8, 4.5), layout="constrained")
    for axis, (run, line) in zip(axes, uses, strict=True):
        seconds = [line.stretch * i for i in range(len(line.compute))]
        axis.plot(seconds, line.compute, label="compute, of peak FLOP/s")
        axis.plot(seconds, line.memory, label="memory, of peak bandwidth")
        axis.set_title(f"{run.policy}, {run.engine}, trace {run.name}", fontsize=9)
        axis.set_ylim(0, 1)
    axes[-1].set_xlabel("simulated seconds")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()

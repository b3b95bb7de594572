"""Use of compute and memory over simulated time, depth-first order and blend (paper Figure 10).

    python -m benchmark.paper.resources --trace 1

Writes resources-TRACE.png and .json: shares of the peak FLOP/s and of the peak bandwidth. Simulated.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from benchmark.paper.compare import WORK, Run, cost_model, simulated
from benchmark.paper.tables import SCALED, SCALED_VIDEO_TOKENS

from sglang.batch.plan_schedules import simulator_processes
from sglang.batch.plan_timeline import Timeline, timeline
from sglang.srt.blend.core.hardware import load_hardware
from sglang.srt.blend.core.step_time import StepWork

POLICIES = ("dfs", "blend")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.paper.resources", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--trace", type=int, choices=(1, 2, 3, 4), default=1)
    parser.add_argument("--engine", choices=("mixed", "overlapped"), default="overlapped")
    parser.add_argument("--requests", type=int, default=SCALED)
    parser.add_argument("--video-tokens", type=int, default=SCALED_VIDEO_TOKENS)
    parser.add_argument("--out", type=Path, default=Path("benchmark/results/paper"))
    arguments = parser.parse_args()
    runs = [
        Run(
            arguments.trace,
            policy,
            arguments.engine,
            arguments.requests,
            video_tokens=arguments.video_tokens,
        )
        for policy in POLICIES
    ]
    with simulator_processes(1) as executor:
        lines = list(executor.map(use, runs))
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = f"resources-{arguments.trace}"
    (arguments.out / f"{name}.json").write_text(
        json.dumps([{**asdict(run), **asdict(line)} for run, line in zip(runs, lines, strict=True)]) + "\n"
    )
    draw(arguments.out / f"{name}.png", runs, lines)
    for run, line in zip(runs, lines, strict=True):
        compute, memory = (sum(part) / len(part) for part in (line.compute, line.memory))
        print(
            f"{run.name} {run.policy:<6}{run.engine}: {compute:.1%} of peak FLOP/s, {memory:.1%} of bandwidth"
        )


def use(run: Run) -> Timeline:
    """Simulate in this process, started with SGLANG_PLATFORM=simulated_gpu."""
    cost = cost_model(run)
    steps = simulated(run)[1].steps
    work = StepWork(**{name: steps[name] for name in WORK})
    return timeline(steps["seconds"], work, cost.shape, load_hardware(run.hardware))


def draw(path: Path, runs: list[Run], lines: list[Timeline]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(runs), sharex=True, sharey=True, figsize=(8, 4.5), layout="constrained")
    for axis, run, line in zip(axes, runs, lines, strict=True):
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

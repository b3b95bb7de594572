"""What not knowing output lengths costs; all simulated, small, the same on any machine.

The paper's four traces, scaled down, run under blend with every length known, and with none known, videos'
neither, under the caps that users would set. Jobs of text (`benchmark.workloads.open_lengths`) run with
lengths unknown. One A100-80GB, Llama-3-8B, modelled seconds; the cache is small, so that small pools contend
for it.

    export SGLANG_PLATFORM=simulated_gpu
    python -m benchmark.length_estimation --json build/lengths.json
    python -m benchmark.length_estimation --only trace1 --only rollouts --engine overlapped
    python -m benchmark.length_estimation --compare before.json after.json   # simulate nothing
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from benchmark import provenance
from benchmark.paper.compare import Run, workload_of
from benchmark.paper.models import MODELS
from benchmark.workloads.open_lengths import OPEN_LENGTHS
from benchmark.workloads.traces import with_video_tokens

from sglang.srt.blend.core.pool.workload import Workload

TRACES = {f"trace{number}": number for number in (1, 2, 3, 4)}
TRACE_KV_TOKENS, OPEN_KV_TOKENS = 50_000, 30_000
"""Of the cache."""

ENGINES = ("overlapped", "mixed")
CHUNK = 2048
"""Prefill tokens per step at most."""


@dataclass(frozen=True, slots=True)
class Job:
    """One simulation.

    Attributes:
        known: whether all output lengths are known; else none is.
        requests, video_tokens: size of a paper trace, about, and mean answer of its videos.
    """

    workload: str
    engine: str
    known: bool = False
    seed: int = 0
    requests: int = 500
    video_tokens: int = 1536


KEY = tuple(field.name for field in fields(Job))
"""What tells one simulation from another."""


def workload_for(job: Job) -> Workload:
    """The job's pool."""
    if job.workload in OPEN_LENGTHS:
        return OPEN_LENGTHS[job.workload](job.seed)
    size = {"requests": job.requests, "video_tokens": job.video_tokens}
    run = Run(TRACES[job.workload], "blend", job.engine, seed=job.seed, **size)
    if job.known:
        return workload_of(replace(run, variant="known lengths"))
    workload = workload_of(run)
    cap = with_video_tokens(job.video_tokens)["openvid"].max_new_tokens
    caps = np.where(workload.known, cap, workload.max_new_tokens).astype(np.int32)
    return replace(workload, known=np.zeros(len(workload), np.bool_), max_new_tokens=caps)


def execute(job: Job) -> dict[str, Any]:
    """Simulate in this process: modelled seconds, steps, retractions per 1,000 requests."""
    from sglang.srt.hardware_backend.simulated_gpu.simulate import simulate

    workload = workload_for(job)
    result = simulate(
        workload,
        policy="blend",
        engine=job.engine,
        hardware="a100-80gb",
        model_config=MODELS["llama-3-8b"].config,
        seed=job.seed,
        chunked_prefill_size=CHUNK,
        max_total_tokens=TRACE_KV_TOKENS if job.workload in TRACES else OPEN_KV_TOKENS,
    )
    return asdict(job) | {
        "pool": len(workload),
        "seconds": round(result.seconds, 3),
        "steps": len(result.steps),
        "retractions": round(1000 * result.retractions / len(workload), 1),
        "sharing": round(result.sharing, 4),
        "python_seconds": round(result.python_seconds, 1),
    }


def jobs(workloads: Sequence[str], engines: Sequence[str], **sizes: int) -> Iterator[Job]:
    """Every simulation.

    Args:
        sizes: fields of `Job`.
    """
    for engine, known, workload in product(engines, (False, True), workloads):
        if not known or workload in TRACES:
            yield Job(workload, engine, known, **sizes)


def compared(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> list[str]:
    """A Markdown table of the simulations that both have."""
    earlier = {tuple(run[name] for name in KEY): run for run in before}
    lines = [
        "| workload | engine | lengths | before, s | after, s | faster | retracted per 1,000 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in after:
        if (old := earlier.get(tuple(run[name] for name in KEY))) is None:
            continue
        lines.append(
            f"| {run['workload']} | {run['engine']} | {'known' if run['known'] else 'unknown'} "
            f"| {old['seconds']:.2f} | {run['seconds']:.2f} | {old['seconds'] / run['seconds']:.3f}x "
            f"| {old['retractions']:g}, then {run['retractions']:g} |"
        )
    return lines


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.compare:
        before, after = (json.loads(path.read_text())["runs"] for path in arguments.compare)
        print("\n".join(compared(before, after)))
        return 0
    sizes = {name: getattr(arguments, name) for name in ("seed", "requests", "video_tokens")}
    command = shlex.join(
        ["SGLANG_PLATFORM=simulated_gpu", "python", "-m", "benchmark.length_estimation", *sys.argv[1:]]
    )
    figures: dict[str, Any] = {"commit": provenance.commit(), "runs": []}
    if arguments.json and arguments.json.exists():
        before = json.loads(arguments.json.read_text())
        if before["commit"] == figures["commit"]:
            figures = before  # goes on where it was interrupted
    done = [{name: run[name] for name in KEY} for run in figures["runs"]]
    for job in jobs(arguments.only or [*TRACES, *OPEN_LENGTHS], arguments.engine or ENGINES, **sizes):
        if asdict(job) in done:
            continue
        figures["runs"].append(execute(job) | {"command": command})
        print(json.dumps(figures["runs"][-1]), flush=True)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.length_estimation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*TRACES, *OPEN_LENGTHS]
    parser.add_argument("--only", action="append", choices=names, help="a workload; may be repeated")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="may be repeated; default is both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--requests", type=int, default=500, help="of a paper trace, about")
    parser.add_argument("--video-tokens", type=int, default=1536, help="of its videos, mean")
    parser.add_argument("--json", type=Path, help="write the figures here, after every simulation")
    parser.add_argument("--compare", type=Path, nargs=2, help="two such files: print a table of both")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""A client that keeps some requests waiting until its file ends: blend and SGLang's policies.

    python -m benchmark.clients --json build/clients.json
    python -m benchmark.clients --engine mixed --job documents --waiting 128

The first requests of each job of benchmark/workloads/jobs.py, lengths unknown, caps as users set them, run
through SGLang's scheduler on a simulated A100-40GB (Llama-3-8B): as soon as fewer than `--waiting` wait, the
next one is sent. Seconds are modelled. Printed are those of fcfs, lpm, dfs-weight and blend, the best of the
others over blend's, and the prompt tokens that blend and that one computed.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean

import numpy as np
from benchmark import provenance
from benchmark.paper.arguments import add_jobs, at_least_one
from benchmark.paper.models import MODELS
from benchmark.workloads.jobs import JOBS, make_job
from tqdm import tqdm

from sglang.batch.plan.schedules import simulator_processes
from sglang.srt.blend.core.pool.workload import Workload

ENGINES = ("alternating", "mixed")
UPSTREAM = ("fcfs", "lpm", "dfs-weight")
HARDWARE, CHUNK = "a100-40gb", 2048


@dataclass(frozen=True, slots=True)
class Row:
    """One job under one engine.

    Attributes:
        seconds, computed: modelled, and prompt tokens that were not in the cache, by policy.
        best: the fastest of upstream's policies; ratio: its seconds / blend's.
        retractions: under blend.
    """

    engine: str
    job: str
    requests: int
    waiting: int
    seconds: dict[str, float]
    computed: dict[str, int]
    best: str
    ratio: float
    retractions: int


def run(workload: Workload, policy: str, engine: str, waiting: int, seed: int) -> tuple[float, int, int]:
    """Modelled seconds, prompt tokens computed and retractions of one policy, in this process.

    Raises:
        RuntimeError: a request was not answered in full.
    """
    from sglang.srt.hardware_backend.simulated_gpu import lone_scheduler
    from sglang.srt.hardware_backend.simulated_gpu.hooks import device_of
    from sglang.srt.hardware_backend.simulated_gpu.simulated_scheduler import simulated_scheduler

    ended: dict[str, int] = {}
    flags = {"blend_hardware": HARDWARE, "blend_engine": engine} if policy == "blend" else {}
    with simulated_scheduler(
        MODELS["llama-3-8b"].config,
        hardware=HARDWARE,
        engine=engine,
        on_finish=lambda rid, reason, tokens: ended.update({rid: tokens}),
        schedule_policy=policy,
        context_length=int((workload.prompt + workload.max_new_tokens).max()) + 16,
        chunked_prefill_size=CHUNK,
        enable_mixed_chunk=engine == "mixed",
        random_seed=seed,
        **flags,
    ) as scheduler:
        device = device_of(scheduler.tp_worker)
        device.lengths = {f"r{i}": int(length) for i, length in enumerate(workload.output)}
        sent = 0
        while len(ended) < len(workload):
            while sent < len(workload) and len(scheduler.waiting_queue) < waiting:
                lone_scheduler.submit(
                    scheduler,
                    f"r{sent}",
                    workload.prompt_tokens(sent),
                    max_new_tokens=int(workload.max_new_tokens[sent]),
                )
                sent += 1
            lone_scheduler.step(scheduler)
    wrong = [i for i, length in enumerate(workload.output) if ended[f"r{i}"] != length]
    if wrong:
        raise RuntimeError(f"{len(wrong)} requests were not answered in full, the first is r{wrong[0]}")
    return device.clock, int(device.steps["prefill_tokens"].sum()), device.retractions


def compare(engine: str, job: str, requests: int, waiting: int, seed: int) -> Row:
    """A job under every policy, in a process on the simulated GPU's platform."""
    logging.disable(logging.ERROR)  # each scheduler's start
    whole = make_job(job, seed=seed)
    workload = whole.take(np.arange(min(requests, len(whole))))
    results = {policy: run(workload, policy, engine, waiting, seed) for policy in ("blend", *UPSTREAM)}
    seconds = {policy: round(result[0], 3) for policy, result in results.items()}
    best = min(UPSTREAM, key=lambda policy: seconds[policy])
    return Row(
        engine=engine,
        job=job,
        requests=len(workload),
        waiting=waiting,
        seconds=seconds,
        computed={policy: result[1] for policy, result in results.items()},
        best=best,
        ratio=round(seconds[best] / seconds["blend"], 4),
        retractions=results["blend"][2],
    )


def report(rows: Sequence[Row]) -> Iterator[str]:
    """A heading, a line for each run, and each engine's mean and worst."""
    yield (
        f"{'engine':<12}{'job':<16}{'best':>12}{'seconds':>9}{'blend':>9}{'gain':>8}"
        f"{'computed, best':>16}{'blend':>10}"
    )
    for row in rows:
        yield (
            f"{row.engine:<12}{row.job:<16}{row.best:>12}{row.seconds[row.best]:>9.1f}{row.seconds['blend']:>9.1f}"
            f"{row.ratio:>7.3f}x{row.computed[row.best]:>16,}{row.computed['blend']:>10,}"
        )
    for engine in dict.fromkeys(row.engine for row in rows):
        ratios = [row.ratio for row in rows if row.engine == engine]
        yield f"{engine}: geometric mean {geometric_mean(ratios):.3f}x, worst {min(ratios):.3f}x"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.clients",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engine", action="append", choices=ENGINES, help="may be repeated; default is all")
    parser.add_argument("--job", action="append", choices=list(JOBS), help="may be repeated; default is all")
    parser.add_argument("--requests", type=at_least_one, default=400, help="of each job at most")
    parser.add_argument(
        "--waiting", type=at_least_one, default=64, help="requests that the client keeps waiting"
    )
    add_jobs(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run")
    arguments = parser.parse_args()
    code = provenance.commit()
    runs = [(engine, job) for engine in arguments.engine or ENGINES for job in arguments.job or JOBS]
    options = arguments.requests, arguments.waiting, arguments.seed
    with simulator_processes(arguments.jobs) as executor:  # what a scheduler leaves goes with its process
        tasks = [executor.submit(compare, engine, job, *options) for engine, job in runs]
        rows = [task.result() for task in tqdm(tasks, unit="job")]
    print("\n".join(report(rows)))
    if arguments.json is not None:
        command = shlex.join(["python", "-m", "benchmark.clients", *sys.argv[1:]])
        written = {"command": command, "commit": code, "seed": arguments.seed}
        arguments.json.write_text(
            json.dumps(written | {"runs": [asdict(row) for row in rows]}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

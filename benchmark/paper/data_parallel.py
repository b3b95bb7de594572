"""Data parallelism on the paper's traces: one pool, 1, 2 and 4 replicas, each on its own simulated GPU.

    python -m benchmark.paper.data_parallel --requests 40000

The pool is divided by `core.sharding` and every part is simulated by itself under blend:overlapped. The time
of a division is that of its slowest replica. Lengths that requests do not fix are estimated from a sample, as
the paper does (5.1); the time to answer that sample is not counted, and each replica's planner samples again.

Every simulation is a process of its own. Finished ones are lines of data_parallel.jsonl in the output folder
and are not repeated as long as the commit is the same.
"""

from __future__ import annotations

import argparse
import csv
import json
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmark.paper.arguments import add_jobs, at_least_one
from benchmark.paper.compare import CHUNK, Run, cost_model, workload_of
from benchmark.paper.models import MODELS
from benchmark.paper.tables import FULL
from benchmark.provenance import commit, identifies
from benchmark.workloads import ImpossibleMix
from numpy.typing import NDArray
from tqdm import tqdm

from sglang.batch.plan.schedules import simulator_processes
from sglang.srt.blend.core.cost.engines import PoolWork, practical_optimum
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.core.order.plan import PlannerOptions
from sglang.srt.blend.core.order.sharding import Shards, shard
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.pool.workload import Workload

PAPER_SPEEDUPS = {2: (1.85, 1.93), 4: (3.78, 3.88)}
"""BlendServe, data parallel: range over the four traces."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One simulation; everything that decides its result.

    Attributes:
        parts: into which the pool is divided; replica: which of them, from 0.
        sample_fraction: share of the unknown lengths that the division is told.
    """

    run: Run
    parts: int
    replica: int
    sample_fraction: float

    def key(self) -> dict[str, Any]:
        """Flat, for JSON."""
        flat = asdict(self)
        return {**flat.pop("run"), **flat}


def expected_outputs(workload: Workload, run: Run, sample_fraction: float) -> NDArray[np.int64]:
    """(n,) known output lengths, and for the rest estimates from a sample's answers."""
    n = len(workload)
    options = PlannerOptions(sample_fraction, memory=n)
    planner = Planner(cost_model(run), kv_capacity=1 << 30, options=options, seed=run.seed)
    slots = planner.add(
        workload.tokens,
        workload.offsets,
        max_new_tokens=workload.max_new_tokens,
        known_output=np.where(workload.known, workload.output, 0),
    )
    assert np.array_equal(slots, np.arange(n))
    planner.replan()
    for sample in np.flatnonzero(planner.table.sampled).tolist():
        planner.admit(sample)
        planner.observe(sample, int(workload.output[sample]))
        planner.remove(sample)
    planner.replan()
    table = planner.table
    return np.where(table.observed[:n] >= 0, table.observed[:n], table.estimate[:n])


def divide(workload: Workload, run: Run, parts: int, sample_fraction: float) -> Shards:
    return shard(
        workload.tokens,
        workload.offsets,
        expected_outputs(workload, run, sample_fraction),
        cost_model(run),
        parts,
    )


def execute(replica: Replica) -> dict[str, Any]:
    """Simulate in this process, started with SGLANG_PLATFORM=simulated_gpu; one line of the results."""
    from sglang.srt.hardware_backend.simulated_gpu.simulate import simulate

    run = replica.run
    model, cost = MODELS[run.model], cost_model(run)
    pool = workload_of(run)
    shards = divide(pool, run, replica.parts, replica.sample_fraction)
    workload = pool.take(shards.parts[replica.replica].requests)
    result = simulate(
        workload,
        policy=run.policy,
        engine=run.engine,
        hardware=run.hardware,
        model_config=model.config,
        tensor_parallel=model.tensor_parallel,
        seed=run.seed,
        chunked_prefill_size=CHUNK,
    )
    order = workload.depth_first_order()
    work = PoolWork.of(workload.prompt[order], workload.output[order], workload.tree(cost).lcp)
    longest = int(workload.output.max())
    bound = practical_optimum(StepTimeModel(cost.shape, cost.hardware), run.engine, work, min_steps=longest)
    return {
        **replica.key(),
        "pool_requests": len(pool),
        "part_requests": len(workload),
        "seconds": result.seconds,
        "bound_seconds": bound,
        "longest_answer": longest,
        "prompt_tokens": result.prompt_tokens,
        "prefill_tokens": result.prefill_tokens,
        "sharing_kept": shards.sharing_kept,
        "imbalance_expected": shards.imbalance,
        "steps": len(result.steps),
        "retractions": result.retractions,
        "python_seconds": result.python_seconds,
    }


def finished(file: Path, code: str) -> list[dict[str, Any]]:
    """Lines of a results file that this commit made."""
    if not file.exists() or not identifies(code):
        return []
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [record for record in records if record["commit"] == code]


def summarise(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per trace and number of replicas.

    `bound_speedup` is what perfect schedules would reach: on each replica the practical optimum with one
    pass for each token of its longest answer.
    """
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["trace"], record["parts"]), []).append(record)
    rows = []
    for (trace, parts), replicas in sorted(groups.items()):
        alone = groups.get((trace, 1))
        if len(replicas) < parts or alone is None:
            continue
        seconds = [replica["seconds"] for replica in replicas]
        bound = max(replica["bound_seconds"] for replica in replicas)
        low, high = PAPER_SPEEDUPS.get(parts, (float(parts), float(parts)))
        prompt = sum(replica["prompt_tokens"] for replica in replicas)
        rows.append(
            {
                "trace": trace,
                "parts": parts,
                "requests": replicas[0]["pool_requests"],
                "seconds": max(seconds),
                "fastest_replica": min(seconds),
                "speedup": alone[0]["seconds"] / max(seconds),
                "paper_low": low,
                "paper_high": high,
                "bound_seconds": bound,
                "bound_speedup": alone[0]["bound_seconds"] / bound,
                "longest_answer": max(replica["longest_answer"] for replica in replicas),
                "sharing": 1.0 - sum(replica["prefill_tokens"] for replica in replicas) / prompt,
                "sharing_kept": replicas[0]["sharing_kept"],
                "imbalance_expected": replicas[0]["imbalance_expected"],
                "retractions": sum(replica["retractions"] for replica in replicas),
                "commit": replicas[0]["commit"],
                "command": replicas[0]["command"],
                "seed": replicas[0]["seed"],
            }
        )
    return rows


def main() -> None:
    arguments = _parser().parse_args()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "data_parallel.jsonl"
    code = commit()
    done = finished(file, code)
    wanted = [
        Replica(
            Run(
                trace,
                "blend",
                "overlapped",
                arguments.requests,
                model=arguments.model,
                hardware=arguments.hardware,
                seed=arguments.seed,
                video_tokens=arguments.video_tokens,
            ),
            parts,
            replica,
            arguments.sample_fraction,
        )
        for trace in arguments.trace or (1, 2, 3, 4)
        for parts in sorted({1, *(arguments.parts or (2, 4))})
        for replica in range(parts)
    ]
    missing = [replica for replica in wanted if not any(_same(replica, record) for record in done)]
    origin = {"commit": code, "command": _command(arguments)}
    with simulator_processes(arguments.jobs) as executor:
        futures = [executor.submit(execute, replica) for replica in missing]
        for future in tqdm(as_completed(futures), total=len(futures), unit="simulation", disable=not futures):
            try:
                record = future.result()
            except ImpossibleMix as error:
                raise SystemExit(f"error: {error}") from None
            done.append({**record, **origin})
            with file.open("a") as lines:
                lines.write(json.dumps(done[-1]) + "\n")
            tqdm.write(_line(record))
    rows = summarise([record for record in done if any(_same(replica, record) for replica in wanted)])
    with (out / "data_parallel.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, out / "data_parallel.png")
    print(_table(rows))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Speed-up bars per trace, with the paper's range and what perfect schedules would reach."""
    from matplotlib.figure import Figure

    traces = sorted({row["trace"] for row in rows})
    divisions = sorted({row["parts"] for row in rows} - {1})
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(divisions), 1)
    for i, parts in enumerate(divisions):
        some = [row for row in rows if row["parts"] == parts]
        x = [traces.index(row["trace"]) + (i - (len(divisions) - 1) / 2) * width for row in some]
        axes.bar(x, [row["speedup"] for row in some], 0.9 * width, label=f"DP {parts}")
        middle = np.array([(row["paper_low"] + row["paper_high"]) / 2 for row in some])
        half = np.array([(row["paper_high"] - row["paper_low"]) / 2 for row in some])
        axes.errorbar(x, middle, half, fmt="none", ecolor="black", capsize=5, label=None if i else "paper")
        axes.plot(
            x,
            [row["bound_speedup"] for row in some],
            "k_",
            markersize=16,
            label=None if i else "perfect schedules, given the longest answers",
        )
    axes.set_xticks(range(len(traces)), [f"trace {trace}" for trace in traces])
    axes.set_ylabel("speed-up over one replica (simulated)")
    axes.legend(loc="upper left", fontsize="small")
    axes.set_ylim(0, 1.3 * max([1.0, *divisions]))
    figure.savefig(path, dpi=120)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.paper.data_parallel", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--requests", type=at_least_one, default=FULL, help="about so many per trace")
    parser.add_argument(
        "--video-tokens", type=at_least_one, default=16384, help="mean answer of the memory trace"
    )
    parser.add_argument("--trace", type=int, action="append", choices=(1, 2, 3, 4), help="default: all")
    parser.add_argument(
        "--parts", type=at_least_one, action="append", help="replicas beside 1; default: 2 and 4"
    )
    parser.add_argument(
        "--sample-fraction", type=float, default=0.01, help="1 tells the division all lengths"
    )
    parser.add_argument("--model", default="llama-3-8b", choices=sorted(MODELS))
    parser.add_argument("--hardware", default="a100-80gb")
    parser.add_argument("--seed", type=int, default=0)
    add_jobs(parser)
    parser.add_argument("--out", default="benchmark/results/paper")
    return parser


def _same(replica: Replica, record: dict[str, Any]) -> bool:
    return all(record.get(name) == value for name, value in replica.key().items())


def _command(arguments: argparse.Namespace) -> str:
    """The command line with everything that decides a result."""
    traces = "".join(f" --trace {trace}" for trace in arguments.trace or ())
    return (
        f"python -m benchmark.paper.data_parallel --requests {arguments.requests}{traces}"
        f" --video-tokens {arguments.video_tokens} --sample-fraction {arguments.sample_fraction}"
        f" --model {arguments.model} --hardware {arguments.hardware} --seed {arguments.seed}"
    )


def _line(r: dict[str, Any]) -> str:
    return (
        f"#{r['trace']} DP {r['parts']} replica {r['replica']}: {r['part_requests']} requests, "
        f"{r['seconds']:.1f} s (perfect schedule with its longest answer of {r['longest_answer']}: "
        f"about {r['bound_seconds']:.1f} s), {r['steps']} steps, scheduling {r['python_seconds']:.0f} s CPU"
    )


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| trace | DP | slowest, s | speed-up | paper | perfect schedules | sharing kept | imbalance |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        paper = f"{r['paper_low']:.2f}-{r['paper_high']:.2f}x" if r["parts"] in PAPER_SPEEDUPS else ""
        lines.append(
            f"| {r['trace']} | {r['parts']} | {r['seconds']:.1f} | {r['speedup']:.2f}x | {paper} "
            f"| {r['bound_speedup']:.2f}x | {r['sharing_kept']:.2%} | {r['imbalance_expected']:.2%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Several replicas: what dividing a pool, keeping prefixes together and stealing bring.

    python -m benchmark.scale_out                      # all rows
    python -m benchmark.scale_out --row division --trace 2
    python -m benchmark.scale_out --row jobs           # who gets what, where prefix groups are large
    python -m benchmark.scale_out --requests 400 --scaled-requests 100 --out /tmp/small

Every row is of replicas in arrays (`benchmark.replica_model`), on the modelled A100, unless it says
"scheduler": those are runs of SGLang's whole scheduler on the simulated GPU, by `python -m
benchmark.paper.data_parallel`, shown as far as they were made. Lengths are estimated from a sample.

Finished rows are lines of scale_out.jsonl in the output folder and are not made again as long as the commit
is the same.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from benchmark.paper.arguments import at_least_one
from benchmark.paper.compare import Run, cost_model, workload_of
from benchmark.paper.data_parallel import expected_outputs, finished
from benchmark.provenance import commit
from benchmark.replica_model import ArrayReplica, Pool, run_replicas
from benchmark.workloads.jobs import make_job
from numpy.typing import NDArray

from sglang.srt.blend.core.order.sharding import Shards, shard
from sglang.srt.blend.core.pool.workload import concatenate

Ints = NDArray[np.int64]
Row = dict[str, Any]

BARS = {
    "DP=2": 1.95,
    "DP=4": 3.85,
    "DP=16": 15.5,
    "DP=64": 60.0,
    "sharing kept": 0.999,
    "over the better of round robin and hash": 1.15,
    "of ideal, one of four half as fast, stealing": 0.95,
}
SAMPLE = 0.01
"""Share of unknown lengths that are known before the pool is divided."""

PREFIXES = (64, 2048)
"""Tokens of the prompt's beginning by whose hash a router chooses a replica, each length by itself."""

JOB_NAMES = ("documents", "rollouts", "agents", "images", "extraction")
"""Jobs of `benchmark.workloads.jobs` whose requests share prefixes."""

JOB_COPIES = 8
"""Seeds of each job in one pool, so that it lasts on four replicas."""


def made(trace: int, requests: int, seed: int) -> Pool:
    """A trace with videos of 2,048 tokens, sorted, with what is expected of its lengths."""
    run = Run(trace, "blend", "overlapped", requests, video_tokens=2048, seed=seed)
    workload = workload_of(run)
    return Pool(workload, expected_outputs(workload, run, SAMPLE), cost_model(run))


def made_of_job(job: str, seed: int) -> Pool:
    """A job of several seeds, shuffled, so that no order of arrival keeps prefixes together by chance."""
    run = Run(0, "blend", "overlapped", 0, seed=seed, job=job)
    copies = concatenate([make_job(job, seed=JOB_COPIES * seed + copy) for copy in range(JOB_COPIES)])
    workload = copies.take(np.random.default_rng(seed).permutation(len(copies)))
    return Pool(workload, expected_outputs(workload, run, SAMPLE), cost_model(run))


def divided(pool: Pool, parts: int) -> Shards:
    expected = pool.expected[pool.position]
    return shard(pool.workload.tokens, pool.workload.offsets, expected, pool.cost, parts)


def seconds(replicas: list[ArrayReplica]) -> float:
    return max(replica.clock for replica in replicas)


def division(trace: int, requests: int, seed: int) -> list[Row]:
    """One pool, 1, 2 and 4 replicas; lengths estimated."""
    pool = made(trace, requests, seed)
    alone = seconds(run_replicas(pool, [np.arange(len(pool.prompt))], stealing=False))
    rows = []
    for parts in (2, 4):
        shards = divided(pool, parts)
        own = [part.requests for part in shards.parts]
        for stealing in (False, True):
            took = seconds(run_replicas(pool, own, stealing=stealing))
            how = ", stealing" if stealing else ""
            rows.append({"figure": f"DP={parts}{how}", "value": alone / took, "seconds": took})
        rows.append({"figure": f"sharing kept, DP={parts}", "value": shards.sharing_kept})
    return rows


def scaled(trace: int, requests: int, seed: int) -> list[Row]:
    """So many requests for each of 1, 16 and 64 replicas; throughput against one."""
    rows: list[Row] = []
    first = made(trace, requests, seed)
    one = seconds(run_replicas(first, [np.arange(len(first.prompt))], stealing=False)) / len(first.prompt)
    for parts in (16, 64):
        pool = made(trace, parts * requests, seed)
        shards = divided(pool, parts)
        took = seconds(run_replicas(pool, [part.requests for part in shards.parts], stealing=True))
        rows.append({"figure": f"DP={parts}", "value": one / took * len(pool.prompt), "seconds": took})
        rows.append({"figure": f"sharing kept, DP={parts}", "value": shards.sharing_kept})
    return rows


def hashed(pool: Pool, parts: int, prefix: int) -> list[Ints]:
    """Parts by the hash of so many tokens of each prompt's beginning."""
    workload = pool.workload
    owner = np.array(
        [zlib.crc32(workload.prompt_tokens(i)[:prefix].tobytes()) % parts for i in range(len(workload))]
    )
    return [np.flatnonzero(owner == part) for part in range(parts)]


def routing(trace: int, requests: int, seed: int) -> list[Row]:
    """Four replicas, each of which plans its part; only who gets what differs."""
    return routed(made(trace, requests, seed))


def routed(pool: Pool, n: int = 4) -> list[Row]:
    """Ways to choose a replica, against a division with stealing.

    `bound` is what the figure would be if the division took an n-th of one replica's time.
    """

    def took(parts: list[Ints], *, stealing: bool = False) -> float:
        return seconds(run_replicas(pool, parts, stealing=stealing))

    every = np.arange(len(pool.prompt))
    ideal = took([every]) / n
    ours = took([part.requests for part in divided(pool, n).parts], stealing=True)
    ways = {"round robin": took([every[i::n] for i in range(n)])}
    ways |= {f"hash of {prefix:,} tokens": took(hashed(pool, n, prefix)) for prefix in PREFIXES}
    ways["the better of round robin and hash"] = min(ways.values())
    return [
        {"figure": f"over {way}", "value": other / ours, "bound": other / ideal, "seconds": other}
        for way, other in ways.items()
    ]


def jobs(trace: int, requests: int, seed: int) -> list[Row]:
    """`routing` on jobs whose prefix groups are large beside a replica's part; sizes are the jobs' own."""
    rows: list[Row] = []
    for job in JOB_NAMES:
        pool = made_of_job(job, seed)
        rows += [{"job": job, "job_requests": len(pool.prompt), **row} for row in routed(pool)]
    return rows


def straggler(trace: int, requests: int, seed: int) -> list[Row]:
    """One of four replicas half as fast, which nobody knows; ideal is 4 / 3.5 of the time of equal ones."""
    pool = made(trace, requests, seed)
    own = [part.requests for part in divided(pool, 4).parts]
    ideal = seconds(run_replicas(pool, own, stealing=True)) * 4 / 3.5
    rows = []
    for stealing in (False, True):
        took = seconds(run_replicas(pool, own, stealing=stealing, speeds=(0.5, 1.0, 1.0, 1.0)))
        how = "stealing" if stealing else "without"
        figure = f"of ideal, one of four half as fast, {how}"
        rows.append({"figure": figure, "value": ideal / took, "seconds": took})
    return rows


ROWS: dict[str, Callable[[int, int, int], list[Row]]] = {
    "division": division,
    "routing": routing,
    "jobs": jobs,
    "straggler": straggler,
    "scaled": scaled,
}


def simulated_by_scheduler(file: Path) -> list[Row]:
    """Rows that `benchmark.paper.data_parallel` has left, of whatever commit."""
    if not file.exists():
        return []
    with file.open() as table:
        return [
            {
                "row": "scheduler",
                "trace": int(r["trace"]),
                "requests": int(r["requests"]),
                "figure": f"DP={r['parts']}",
                "value": float(r["speedup"]),
                "seconds": float(r["seconds"]),
                "bound": float(r["bound_speedup"]),
                "commit": r["commit"],
                "seed": int(r["seed"]),
            }
            for r in csv.DictReader(table)
            if int(r["parts"]) > 1
        ]


def bar(figure: str) -> float | None:
    """What a figure should reach."""
    return (
        BARS.get(figure.removesuffix(", stealing")) or BARS.get(figure) or BARS.get(figure.split(", DP")[0])
    )


def pool_name(row: Row) -> str:
    """The trace or the job of a row."""
    return str(row.get("job") or f"trace {row['trace']}")


def text(rows: list[Row]) -> str:
    """The table for people."""
    lines = ["| rows | pool | requests | figure | bar | here | bound | |", "| --- " * 8 + "|"]
    for r in rows:
        least = bar(r["figure"])
        shown = (
            f"{r['value']:.2%}"
            if "of ideal" in r["figure"] or "kept" in r["figure"]
            else f"{r['value']:.3f}x"
        )
        bound = f"{r['bound']:.3f}x" if "bound" in r else ""
        mark = "" if least is None or r["value"] >= least else "missed"
        lines.append(
            f"| {r['row']} | {pool_name(r)} | {r.get('job_requests', r['requests']):,} | {r['figure']} "
            f"| {least or ''} | {shown} | {bound} | {mark} |"
        )
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Each figure with a bar, as a share of it, by trace."""
    from matplotlib.figure import Figure

    some = [(r, least) for r in rows if (least := bar(r["figure"]))]
    names = list(dict.fromkeys(f"{r['row']}: {r['figure']}" for r, _ in some))
    figure = Figure(figsize=(9, 1 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots()
    for pool in dict.fromkeys(pool_name(r) for r, _ in some):
        points = [
            (r["value"] / least, names.index(f"{r['row']}: {r['figure']}"))
            for r, least in some
            if pool_name(r) == pool
        ]
        axes.plot(*zip(*points, strict=True), "o", label=pool)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.set_xlabel("share of the bar (modelled)")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    arguments = _parser().parse_args()
    out, code = Path(arguments.out), commit()
    out.mkdir(parents=True, exist_ok=True)
    file = out / "scale_out.jsonl"
    done, rows = finished(file, code), []
    for kind in arguments.row or list(ROWS):
        for trace in (0,) if kind == "jobs" else arguments.trace or (1, 2, 3, 4):
            size = arguments.scaled_requests if kind == "scaled" else arguments.requests
            key = {"row": kind, "trace": trace, "requests": size, "seed": arguments.seed}
            some = [record for record in done if record.items() >= key.items()]
            if not some:
                began = time.process_time()
                some = [{**key, **row, "commit": code} for row in ROWS[kind](trace, size, arguments.seed)]
                with file.open("a") as lines:
                    lines.writelines(json.dumps(row) + "\n" for row in some)
                print(f"{text(some)}\n{time.process_time() - began:.0f} s CPU", flush=True)
            rows += some
    rows += simulated_by_scheduler(Path(arguments.scheduler))
    command = (
        f"python -m benchmark.scale_out --requests {arguments.requests}"
        f" --scaled-requests {arguments.scaled_requests} --seed {arguments.seed}"
    )
    record = {
        "command": command,
        "seed": arguments.seed,
        "commit": code,
        "rows": rows,
    }
    (out / "scale_out.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(rows, out / "scale_out.png")
    print(text(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.scale_out",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--row", action="append", choices=ROWS, help="only this; default: all")
    parser.add_argument("--trace", type=int, action="append", choices=(1, 2, 3, 4), help="default: all")
    parser.add_argument("--requests", type=at_least_one, default=80_000, help="about so many per pool")
    parser.add_argument(
        "--scaled-requests", type=at_least_one, default=10_000, help="for each of 1, 16 and 64 replicas"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scheduler", default="benchmark/results/paper/data_parallel.csv", help="runs of the whole scheduler"
    )
    parser.add_argument("--out", default="benchmark/results")
    return parser


if __name__ == "__main__":
    main()

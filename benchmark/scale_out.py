"""Several replicas: what dividing a pool, keeping prefixes together and stealing bring.

    python -m benchmark.scale_out                      # all rows
    python -m benchmark.scale_out --row division --trace 2
    python -m benchmark.scale_out --requests 400 --out /tmp/small

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
from numpy.typing import NDArray

from sglang.srt.blend.core.order.sharding import Shards, shard

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

PREFIX = 64
"""Tokens of the prompt's beginning by whose hash routers choose a replica."""


def made(trace: int, requests: int, seed: int) -> Pool:
    """A trace with videos of 2,048 tokens, sorted, with what is expected of its lengths."""
    run = Run(trace, "blend", "overlapped", requests, video_tokens=2048, seed=seed)
    workload = workload_of(run)
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


def hashed(pool: Pool, parts: int) -> list[Ints]:
    """Parts by the hash of each prompt's beginning."""
    workload = pool.workload
    owner = np.array(
        [zlib.crc32(workload.prompt_tokens(i)[:PREFIX].tobytes()) % parts for i in range(len(workload))]
    )
    return [np.flatnonzero(owner == part) for part in range(parts)]


def routing(trace: int, requests: int, seed: int) -> list[Row]:
    """Four replicas, each of which plans its part; only who gets what differs."""
    pool, n = made(trace, requests, seed), 4
    own = [part.requests for part in divided(pool, n).parts]
    ours = seconds(run_replicas(pool, own, stealing=True))
    turns = seconds(run_replicas(pool, [np.arange(i, len(pool.prompt), n) for i in range(n)], stealing=False))
    by_hash = seconds(run_replicas(pool, hashed(pool, n), stealing=False))
    return [
        {"figure": "over round robin", "value": turns / ours, "seconds": turns},
        {"figure": "over hash of the prefix", "value": by_hash / ours, "seconds": by_hash},
        {
            "figure": "over the better of round robin and hash",
            "value": min(turns, by_hash) / ours,
            "seconds": ours,
        },
    ]


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


def text(rows: list[Row]) -> str:
    """The table for people."""
    lines = ["| rows | trace | requests | figure | bar | here | |", "| --- " * 7 + "|"]
    for r in rows:
        least = bar(r["figure"])
        shown = (
            f"{r['value']:.2%}"
            if "of ideal" in r["figure"] or "kept" in r["figure"]
            else f"{r['value']:.3f}x"
        )
        mark = "" if least is None or r["value"] >= least else "missed"
        lines.append(
            f"| {r['row']} | {r['trace']} | {r['requests']:,} | {r['figure']} | {least or ''} | {shown} "
            f"| {mark} |"
        )
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Each figure with a bar, as a share of it, by trace."""
    from matplotlib.figure import Figure

    some = [(r, least) for r in rows if (least := bar(r["figure"]))]
    names = list(dict.fromkeys(f"{r['row']}: {r['figure']}" for r, _ in some))
    figure = Figure(figsize=(9, 1 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots()
    for trace in sorted({r["trace"] for r, _ in some}):
        points = [
            (r["value"] / least, names.index(f"{r['row']}: {r['figure']}"))
            for r, least in some
            if r["trace"] == trace
        ]
        axes.plot(*zip(*points, strict=True), "o", label=f"trace {trace}")
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
        for trace in arguments.trace or (1, 2, 3, 4):
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
    parser.add_argument("--requests", type=at_least_one, default=20_000, help="about so many per pool")
    parser.add_argument(
        "--scaled-requests", type=at_least_one, default=1_000, help="for each of 16 and 64 replicas"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scheduler", default="benchmark/results/paper/data_parallel.csv", help="runs of the whole scheduler"
    )
    parser.add_argument("--out", default="benchmark/results")
    return parser


if __name__ == "__main__":
    main()

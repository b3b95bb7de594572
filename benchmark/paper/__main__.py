"""Compare policies and engines on the paper's traces, on a simulated GPU.

    python -m benchmark.paper --requests 40000 --trace 1 --schedule dfs:overlapped --schedule blend:overlapped

Every run is a process of its own. Finished runs are lines of results.jsonl in the output folder and are
not repeated, so an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmark.paper.compare import Run, execute

SCHEDULES = (
    "dfs:mixed",
    "dfs:overlapped",
    "random:overlapped",
    "lpm:mixed",
    "blend:mixed",
    "blend:overlapped",
)


def main() -> None:
    arguments = _parser().parse_args()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    runs = [
        Run(
            trace,
            *schedule.split(":"),
            arguments.requests,
            model=arguments.model,
            hardware=arguments.hardware,
            compute=arguments.compute,
            seed=arguments.seed,
        )
        for trace in arguments.trace or (1, 2, 3, 4)
        for schedule in arguments.schedule or SCHEDULES
    ]
    missing = [run for run in runs if not any(_same(run, record) for record in done)]
    os.environ["SGLANG_PLATFORM"] = "simulated_gpu"  # of the processes that are started below
    with multiprocessing.get_context("spawn").Pool(arguments.jobs, maxtasksperchild=1) as pool:
        for row in pool.imap_unordered(execute, missing):
            done.append(row.record())
            with file.open("a") as lines:
                lines.write(json.dumps(done[-1]) + "\n")
            print(_line(done[-1]), flush=True)
    wanted = [record for run in runs for record in done if _same(run, record)]
    _write_csv(out / "results.csv", wanted)
    print(_table(wanted))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmark.paper", description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=40_000, help="about so many per trace")
    parser.add_argument("--trace", type=int, action="append", choices=(1, 2, 3, 4), help="default: all")
    parser.add_argument("--schedule", action="append", metavar="POLICY:ENGINE", help=f"default: {SCHEDULES}")
    parser.add_argument("--model", default="llama-3-8b")
    parser.add_argument("--hardware", default="a100-80gb")
    parser.add_argument("--compute", default="burstgpt", help="compute-intensive trace of the mix")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="simulations at a time, about 3 GB each")
    parser.add_argument("--out", default="benchmark/results/paper")
    return parser


def _same(run: Run, record: dict[str, Any]) -> bool:
    return asdict(run) == {field.name: record.get(field.name) for field in fields(Run)}


def _line(r: dict[str, Any]) -> str:
    return (
        f"#{r['trace']} {r['policy']:>8} {r['engine']:<11} {r['seconds']:9.1f} s "
        f"{r['throughput']:8.0f} tok/s "
        f"{r['optimum_share']:6.1%} of optimum ({r['bound_share']:.1%} given its longest answer), "
        f"sharing {r['sharing']:.3f} of {r['sharing_possible']:.3f}, "
        f"{r['steps']} steps, scheduling {r['python_seconds']:.0f} s CPU"
    )


def _table(records: list[dict[str, Any]]) -> str:
    """Speed-ups over depth-first order on the same engine and trace, with the paper's figures."""
    time = {(r["trace"], r["policy"], r["engine"]): r["seconds"] for r in records}
    lines = []
    for (trace, policy, engine), seconds in sorted(time.items()):
        base = time.get((trace, "dfs", engine))
        vllm = time.get((trace, "dfs", "mixed"))
        if policy == "dfs" or base is None:
            continue
        more = f", {vllm / seconds:.3f}x over dfs:mixed" if vllm else ""
        lines.append(f"#{trace} {policy}:{engine} {base / seconds:.3f}x over dfs:{engine}{more}")
    lines.append("paper: blend 1.19x to 1.23x over dfs:overlapped, up to 1.44x over dfs:mixed")
    return "\n".join(lines)


def _write_csv(path: Path, records: list[dict[str, Any]]) -> None:
    if not records:
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


if __name__ == "__main__":
    main()

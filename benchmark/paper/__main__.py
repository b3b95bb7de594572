"""The paper's evaluation on a simulated GPU: run one table, print it next to the paper's figures.

    python -m benchmark.paper quick            # four traces, scaled down; what `make paper-quick` runs
    python -m benchmark.paper headline --jobs 2
    python -m benchmark.paper traces | lpm | grid | variance | azure | models | ablations | chunks
    python -m benchmark.paper hardware             # the planner takes the GPU for another one
    python -m benchmark.paper parts                # order, pacing, forecast, baseline: whose gain it is
    python -m benchmark.paper engines              # by engine that exists; hours
    python -m benchmark.paper engines --scale 0.25   # its small size: 2,500 requests per trace
    python -m benchmark.paper real                 # its jobs alone: lengths unknown, A100-40GB; an hour
    python -m benchmark.paper real --seeds 3       # with two more of each
    python -m benchmark.paper real --engine mixed --job agents --job images   # some of them
    python -m benchmark.paper headline --report   # print and draw again, simulate nothing

Every simulation is a process of its own. Finished runs are lines of TABLE.jsonl in the output folder. Neither
that table nor another repeats them, so an interrupted table goes on where it stopped; they carry the commit,
and runs of another commit, or of uncommitted changes, are made again. Exit code 1 if --check is given and a
bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmark import provenance
from benchmark.paper import engines, parts, report
from benchmark.paper.arguments import add_jobs, at_least_one
from benchmark.paper.compare import TOLD, Run, batches, execute
from benchmark.paper.pictures import draw
from benchmark.paper.published import against_paper
from benchmark.paper.tables import SHORTEST_VIDEO_TOKENS, TABLES
from benchmark.workloads.jobs import JOBS
from tqdm import tqdm

from sglang.batch.plan.schedules import simulator_processes
from sglang.srt.blend.core.cost.engines import engine_names

_BARS = {
    "headline": report.BARS,
    "quick": report.QUICK_BARS,
    "traces": report.SCALED_BARS,
    "variance": report.VARIANCE_BARS,
}
_BY_ENGINE = ("engines", "real")


def main() -> int:
    arguments = _parser().parse_args()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    table, commit = arguments.table, provenance.commit()
    file = out / f"{table}.jsonl"
    runs = _wanted(arguments)
    if not runs:
        print(f"{table}: has no such runs", file=sys.stderr)
        return 2
    done = _finished(out, table, runs, None if arguments.report else commit)
    missing = [run for run in runs if not any(_same(run, record) for record in done)]
    if arguments.report and missing and table in _BY_ENGINE:
        print(f"{len(missing)} of {len(runs)} runs are missing; the best of what there is:", file=sys.stderr)
        missing = []
    if arguments.report and missing:
        problem = f"{table}: {len(missing)} of {len(runs)} runs are missing in {out}; run it without --report"
        print(problem, file=sys.stderr)
        return 2
    file.write_text("".join(json.dumps(record) + "\n" for record in done))
    with simulator_processes(arguments.jobs) as executor, file.open("a") as lines:
        futures = [executor.submit(execute, group) for group in batches(missing)]
        for future in tqdm(as_completed(futures), total=len(futures), unit="simulation", disable=not futures):
            for row in future.result():
                done.append({**row.record(), "commit": commit})
                lines.write(json.dumps(done[-1]) + "\n")
            lines.flush()
    wanted = [record for run in runs for record in done if _same(run, record)]
    report.write_csv(out / f"{table}.csv", wanted)
    if table in _BY_ENGINE:
        return _engines(out, wanted, arguments, len(runs) - len(wanted))
    if table == "parts":
        parts.draw(out / f"{table}.png", wanted)
        print(parts.text(wanted))
        return 0
    draw(out / f"{table}.png", wanted)
    bars = _BARS.get(table, {})
    print(report.text(wanted, bars))
    if not arguments.trace:
        for figure, paper, here in against_paper(table, wanted):
            print(f"{figure}: paper {paper}; here {here}")
    missed = report.missed(report.summary(report.lines(wanted)), bars)
    if table == "hardware":
        missed += report.slowed(wanted, TOLD)
    return 1 if arguments.check and missed else 0


def _engines(out: Path, records: list[dict[str, Any]], arguments: argparse.Namespace, missing: int) -> int:
    """Report a table by engine, which has a form of its own."""
    table = arguments.table
    command = " ".join(("python -m benchmark.paper", *(a for a in sys.argv[1:] if a != "--report")))
    engines.write_json(out / f"{table}.json", records, command, missing)
    engines.draw(out / f"{table}.png", records)
    print(engines.text(records))
    # The mean of some jobs has no bar.
    bars = {name: bar for name, bar in engines.BARS.items() if not arguments.job or name.endswith("worst")}
    return 1 if arguments.check and report.missed(engines.summary(records), bars) else 0


def _wanted(arguments: argparse.Namespace) -> list[Run]:
    """The runs of the table that are asked for, each with every seed."""
    runs = [
        scaled(run, arguments.scale)
        for run in TABLES[arguments.table]()
        if (not arguments.trace or run.trace in arguments.trace)
        and (not arguments.engine or run.engine in arguments.engine)
        and (not arguments.job or run.job in arguments.job)
    ]
    return [replace(run, seed=run.seed + more) for more in range(arguments.seeds) for run in runs]


def scaled(run: Run, scale: float) -> Run:
    """A run with fewer requests and shorter videos, so that as many generations of them fill the cache.

    Videos keep `SHORTEST_VIDEO_TOKENS`: no mix with shorter ones is as memory-heavy as traces 2 and 4. Jobs
    keep their size.
    """
    if scale == 1.0 or run.job:
        return run
    shorter = max(int(run.video_tokens * scale), SHORTEST_VIDEO_TOKENS)
    return replace(run, requests=int(run.requests * scale), video_tokens=min(run.video_tokens, shorter))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--trace", type=int, action="append", choices=(1, 2, 3, 4), help="only this one")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="requests, and lengths of videos down to 2,048 tokens, times this",
    )
    parser.add_argument("--engine", action="append", choices=engine_names(), help="only this one")
    parser.add_argument("--job", action="append", choices=JOBS, help="only this one; means have no bar then")
    parser.add_argument("--seeds", type=at_least_one, default=1, metavar="N", help="this many of each run")
    add_jobs(parser)
    parser.add_argument("--out", default="benchmark/results/paper")
    parser.add_argument(
        "--report",
        action="store_true",
        help="simulate nothing: print and draw the finished runs of any commit",
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    return parser


def _finished(out: Path, table: str, runs: list[Run], commit: str | None) -> list[dict[str, Any]]:
    """The table's own runs of a commit (None: of any), and those of `runs` that other tables have."""
    files = {name: out / f"{name}.jsonl" for name in (table, *TABLES)}
    records = {
        name: [json.loads(line) for line in file.read_text().splitlines()]
        for name, file in files.items()
        if file.exists()
    }
    current = {
        name: [
            record
            for record in rows
            if commit is None or (record["commit"] == commit and provenance.identifies(commit))
        ]
        for name, rows in records.items()
    }
    done = current.pop(table, [])
    others = [record for rows in current.values() for record in rows]
    for run in runs:
        if not any(_same(run, record) for record in done):
            done += [record for record in others if _same(run, record)][:1]
    return done


def _same(run: Run, record: dict[str, Any]) -> bool:
    # Runs of before there were jobs do not name one.
    return all(record.get(name, "") == value for name, value in asdict(run).items())


if __name__ == "__main__":
    sys.exit(main())

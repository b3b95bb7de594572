"""What `sglang-batch run` itself costs: memory, time and processor time of short lines and an engine that
answers at once (`benchmark.echo_batch`).

The job: as many lines as asked for, the engine in a worker process, killed with `kill -9` when half of the
answers are on the disk, and continued to its end. The parts: a twentieth of the lines, several rounds in
alternation, with and without a worker process (the hop), with and without a journal (which without also
means that lines are read once and nothing is compared), lines that may have equal ones (`"temperature": 0`,
none has) with and without `--no-dedupe`.

Processor time is user and system time of runner and worker without the imports of each (0.5 s here; torch's
come on top in a real run). It depends less on what else the machine does than times of the wall do.

    python -m benchmark.batch_overhead --lines 20000
    python -m benchmark.batch_overhead --json benchmark/results/batch_overhead.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmark import provenance

DEFAULT_LINES = 1_000_000

PARTS = {
    "worker": ("--worker",),
    "same process": (),
    "worker, no journal": ("--worker", "--no-journal"),
    "same process, no journal": ("--no-journal",),
    "greedy": ("--worker",),
    "greedy, no dedupe": ("--worker", "--no-dedupe"),
}
"""Flags of `benchmark.echo_batch` for each part; "greedy" ones have lines with a temperature."""

RATIOS = {
    "worker / same process": ("worker", "same process"),
    "journal / none, same process": ("same process", "same process, no journal"),
    "journal / none, worker": ("worker", "worker, no journal"),
    "greedy lines / others": ("greedy", "worker"),
    "dedupe / none, greedy lines": ("greedy", "greedy, no dedupe"),
}


def write_lines(path: Path, count: int, seed: int, **body: Any) -> None:
    """Write completions of 32 random hexadecimal digits, each its own; `body` has further fields."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for i in range(count):
            fields = {"prompt": f"{draw.getrandbits(128):032x}", "max_tokens": 5, **body}
            line = {"custom_id": f"line-{i:07}", "method": "POST", "url": "/v1/completions", "body": fields}
            file.write(json.dumps(line) + "\n")


def start(lines: Path, folder: Path, *flags: str) -> subprocess.Popen[bytes]:
    """Start a run whose output and figures are in a folder."""
    command = [sys.executable, "-m", "benchmark.echo_batch", "--figures", str(folder / "figures.json")]
    return subprocess.Popen([*command, "-i", str(lines), "-o", str(folder / "out.jsonl"), "--quiet", *flags])


def finish(process: subprocess.Popen[bytes], folder: Path, lines: int) -> dict[str, float]:
    """Wait for a run's end; returns its figures after counting its records."""
    if process.wait():
        raise SystemExit(f"a run ended with exit code {process.returncode}, see above")
    with (folder / "out.jsonl").open("rb") as output:
        records = sum(1 for _ in output)
    if records != lines:
        raise SystemExit(f"{lines:,} lines and {records:,} records")
    figures: dict[str, float] = json.loads((folder / "figures.json").read_bytes())
    return figures


def undisturbed(lines: Path, count: int, flags: Sequence[str], folder: Path) -> dict[str, float]:
    """Run lines to their end."""
    return finish(start(lines, folder, *flags), folder, count)


def killed_and_continued(lines: Path, count: int, folder: Path) -> dict[str, Any]:
    """Kill a run when half of its answers are committed, and continue it."""
    process = start(lines, folder, "--worker")
    answers = folder / "out.jsonl.partial"
    began, half = time.time(), None
    while process.poll() is None:
        time.sleep(0.05)
        if answers.exists() and (size := answers.stat().st_size):
            with answers.open("rb") as file:
                record = len(file.readline())  # custom_ids and answers are all of one length
            if size >= record * count / 2:
                process.kill()
                half = time.time() - began
                break
    process.wait()
    if half is None:
        raise SystemExit("the run ended before it could be killed, see above")
    killed = answers.stat().st_size // record
    figures = finish(start(lines, folder, "--worker"), folder, count)
    size = (folder / "out.jsonl.journal").stat().st_size
    return {"killed_at_s": round(half, 1), "killed_at_line": killed, "journal_bytes": size, **figures}


def per_line(figures: dict[str, float], lines: int) -> float:
    """Milliseconds of processor time per line, runner and worker, their imports apart."""
    imports = figures["imported_cpu"] + figures["worker_imported_cpu"]
    return (figures["runner_cpu"] + figures["worker_cpu"] - imports) / lines * 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.batch_overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--lines", type=int, default=DEFAULT_LINES, help="of the job (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of the parts; medians are printed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args()
    report: dict[str, Any] = {
        "command": f"python -m benchmark.batch_overhead {' '.join(sys.argv[1:])}".strip(),
        "commit": provenance.commit(),
        "seed": options.seed,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load_average": [os.getloadavg()],
        "lines": options.lines,
    }
    with tempfile.TemporaryDirectory(prefix="batch-overhead-") as name:
        root = Path(name)
        plain, greedy = root / "plain.jsonl", root / "greedy.jsonl"
        write_lines(plain, options.lines, options.seed)
        report["job"] = _in_folder(root, partial(killed_and_continued, plain, options.lines))
        keep(report, options.json)
        few = max(options.lines // 20, 1)
        write_lines(plain, few, options.seed)
        write_lines(greedy, few, options.seed, temperature=0)
        runs: dict[str, list[dict[str, float]]] = {part: [] for part in PARTS}
        for _ in range(options.rounds):
            for part, flags in PARTS.items():
                lines = greedy if part.startswith("greedy") else plain
                runs[part].append(_in_folder(root, partial(undisturbed, lines, few, flags)))
            report |= {"parts": summary(runs, few), "runs": runs}
            keep(report, options.json)
    show(report)


def keep(report: dict[str, Any], path: Path | None) -> None:
    """Write what is known by now, and how busy the machine was."""
    report["load_average"].append(os.getloadavg())
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n")


def summary(runs: dict[str, list[dict[str, float]]], lines: int) -> dict[str, Any]:
    """Medians over the rounds, and ratios of medians."""
    cpu = {part: median(per_line(figures, lines) for figures in some) for part, some in runs.items()}
    return {
        "lines": lines,
        "cpu_ms_per_line": {part: round(value, 4) for part, value in cpu.items()},
        "scan_cpu_ms_per_line": {
            part: round(median(one["scanned_cpu"] - one["imported_cpu"] for one in some) / lines * 1000, 4)
            for part, some in runs.items()
            if "no journal" not in part
        },
        "wall_s": {
            part: round(median(figures["ended_at"] for figures in some), 1) for part, some in runs.items()
        },
        "ratios": {name: round(cpu[one] / cpu[other], 3) for name, (one, other) in RATIOS.items()},
    }


def show(report: dict[str, Any]) -> None:
    """Print the figures."""
    job, parts = report["job"], report["parts"]
    print(
        f"{report['lines']:,} lines, killed at {job['killed_at_line']:,} and continued:"
        f" first new answer {job['first_answer_at']:.1f} s after the start of the process,"
        f" of which {job['scanned_at']:.1f} s comparing; peak memory {job['runner_peak_mib']:.0f} MiB runner,"
        f" {job['worker_peak_mib']:.0f} MiB worker"
    )
    print(f"{parts['lines']:,} lines, medians of {len(report['runs']['worker'])}:")
    for part, value in parts["cpu_ms_per_line"].items():
        print(f"  {part:<26}{value:>8.3f} ms of processor time a line, {parts['wall_s'][part]:>7.1f} s")
    for name, ratio in parts["ratios"].items():
        print(f"  {name:<32}{ratio:>6.2f}x")


def _in_folder(root: Path, run: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        return run(folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""A CPU engine beside a busy process: how much slower is a decode step than alone?

    python -m benchmark.busy_neighbour --json build/busy_neighbour.json

Engines of this platform's kernels answer the same requests in turn, alone and beside one process that never
rests. They differ in how threads wait for each other: as the platform has it, as OpenMP does by itself, which
is to spin for longer, or asleep (OMP_WAIT_POLICY). Measured by the clock: nothing else should run. Printed
are medians of milliseconds per decode step and, of each round, the ratios: beside a neighbour over alone, and
alone over OpenMP by itself. Whether Linux shares the cores between sessions first is told, too
(kernel.sched_autogroup_enabled). Exit code 1 with --check if the platform's engine is more than 2.2 times
slower beside a neighbour.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.cpu.steps import same_length_pool
from benchmark.offline.configurations import Configuration, Setting, sglang_options, start_sglang
from benchmark.offline.machine import add_machine_arguments, describe_machine, exit_on_sigterm
from benchmark.offline.pool_file import write_pool
from benchmark.offline.protocol import Worker

WAITS = {
    "platform": {},
    "OpenMP": {"GOMP_SPINCOUNT": "300000"},  # what it does without a word
    "sleeping": {"OMP_WAIT_POLICY": "passive"},
}
"""Environment of each engine. None spins for ever: it would be a neighbour of the other while it rests."""

SLOWER = 2.2
"""Bar: beside a neighbour over alone."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.busy_neighbour",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, default=8, help="sequences (default: 8)")
    parser.add_argument("--steps", type=int, default=24, help="decode steps of a round (default: 24)")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--out", type=Path, default=Path("build/busy-neighbour"), metavar="DIR", help="logs")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    add_machine_arguments(parser)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    setting = Setting.of(arguments, kv_tokens=4096 + arguments.batch * (arguments.steps + 64))
    pool = arguments.out / "pool.npz"
    write_pool(pool, same_length_pool(arguments.batch, 32, arguments.steps + 1))
    rounds = measure(setting, pool, arguments.rounds, arguments.out)
    figures = summarise(rounds)
    for name, value in figures.items():
        print(f"{name}: {value:.2f}")
    if arguments.json:
        record = {
            "command": shlex.join(["python", "-m", "benchmark.busy_neighbour", *sys.argv[1:]]),
            "seed": 0,
            "machine": describe_machine(),
            "sched_autogroup_enabled": _autogroup(),
            "setting": setting.record(),
            "rounds": rounds,
            "figures": figures,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if arguments.check and figures["platform, beside / alone"] > SLOWER else 0


def measure(setting: Setting, pool: Path, rounds: int, out: Path) -> list[dict[str, float]]:
    """Milliseconds of a decode step of each round, by engine and by whether a neighbour was busy."""
    results = []
    with contextlib.ExitStack() as up:
        workers: dict[str, Worker] = {}
        for wait, environment in WAITS.items():
            options = sglang_options(Configuration("fcfs", mixed_chunk=False), setting)
            log = out / f"{wait.replace(' ', '-')}.log"
            workers[wait] = start_sglang(options, setting, log, **environment)
            up.callback(workers[wait].stop)
            workers[wait].ready()
        for number in range(rounds):
            one = {}
            for wait, worker in workers.items():
                one[f"{wait}, alone"] = _decode_step(worker, pool)
                with busy_process():
                    one[f"{wait}, beside"] = _decode_step(worker, pool)
            results.append(one)
            print(f"round {number + 1}: " + ", ".join(f"{k} {v:.1f} ms" for k, v in one.items()), flush=True)
    return results


@contextlib.contextmanager
def busy_process() -> Iterator[int]:
    """A process that computes all the time, at this one's priority; its id."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def summarise(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Medians of milliseconds, and medians of each round's ratios."""
    figures = {f"{name}, ms": statistics.median(one[name] for one in rounds) for name in rounds[0]}
    for wait in WAITS:
        figures[f"{wait}, beside / alone"] = statistics.median(
            one[f"{wait}, beside"] / one[f"{wait}, alone"] for one in rounds
        )
        figures[f"alone, {wait} / OpenMP"] = statistics.median(
            one[f"{wait}, alone"] / one["OpenMP, alone"] for one in rounds
        )
    return figures


def _autogroup() -> str | None:
    """Whether Linux shares the cores between sessions first; None where it does not say."""
    setting = Path("/proc/sys/kernel/sched_autogroup_enabled")
    return setting.read_text().strip() if setting.exists() else None


def _decode_step(worker: Worker, pool: Path) -> float:
    message: dict[str, Any] = worker.call({"pool": str(pool)})
    return float(message["decode_step_ms"])


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())

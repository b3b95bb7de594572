"""The runs: every configuration in turn on every workload, several rounds, one engine computing at a time."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmark.offline.configurations import Configuration, Setting, start_worker
from benchmark.offline.machine import wait_until_idle
from benchmark.offline.pool_file import write_pool
from benchmark.offline.protocol import Worker
from benchmark.offline.workloads import Prepared

ENGINE_BYTES = 3.5e9
"""Memory of one engine with its processes; 3.0 GB measured with 8,192 tokens of KV cache."""

Run = dict[str, Any]


def measure(
    configurations: Sequence[Configuration],
    workloads: Sequence[Prepared],
    setting: Setting,
    *,
    rounds: int,
    folder: Path,
    engines_at_once: int,
    say: Callable[[str], None],
) -> Iterator[Run]:
    """Yield each run as soon as it is measured.

    All variants of a policy (with and without mixed chunk) run in the first round, and the one that was
    fastest (geometric mean over the workloads) in the others. Engines stay up between their runs where
    memory allows: idle ones sleep. Each round starts with another configuration.

    Args:
        folder: for the workloads' files and the workers' logs.
    """
    pools = {workload.name: _write(workload, folder) for workload in workloads}
    first_round: list[Run] = []
    chosen = list(configurations)
    with ExitStack() as up:
        workers: dict[Configuration, Worker] = {}
        for number in range(1, rounds + 1):
            turn = number % len(chosen)
            order = chosen[turn:] + chosen[:turn]
            for group in _groups(order, engines_at_once):
                if any(configuration not in workers for configuration in group):
                    up.close()
                    # Together: most of a start is one process importing.
                    workers = {c: _start(c, setting, folder, up, say) for c in group}
                    for configuration, worker in workers.items():
                        _await(configuration, worker, setting, say)
                for workload in workloads:
                    for configuration in group:
                        busy = wait_until_idle()
                        answer = workers[configuration].call(
                            {"pool": str(pools[workload.name][configuration.depth_first])}
                        )
                        run = {
                            "round": number,
                            "workload": workload.name,
                            "configuration": configuration.name,
                            "busy_before": round(busy, 1),
                            **answer,
                        }
                        if number == 1:
                            first_round.append(run)
                        yield run
            if number == 1:
                chosen = fastest_variants(configurations, first_round)


def fastest_variants(configurations: Sequence[Configuration], runs: Sequence[Run]) -> list[Configuration]:
    """Of each policy and order the variant with the lowest geometric mean of seconds."""
    logs: dict[str, float] = {}
    for run in runs:
        logs[run["configuration"]] = logs.get(run["configuration"], 0.0) + math.log(run["seconds"])
    best: dict[tuple[str, bool], Configuration] = {}
    for configuration in configurations:
        key = configuration.policy, configuration.depth_first
        if key not in best or logs[configuration.name] < logs[best[key].name]:
            best[key] = configuration
    return list(best.values())


def engines_that_fit() -> int:
    """How many engines the memory that is free now can hold."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    return max(1, int(free / ENGINE_BYTES))


def _groups(configurations: Sequence[Configuration], size: int) -> Iterator[Sequence[Configuration]]:
    for begin in range(0, len(configurations), size):
        yield configurations[begin : begin + size]


def _start(
    configuration: Configuration, setting: Setting, folder: Path, up: ExitStack, say: Callable[[str], None]
) -> Worker:
    say(f"starting {configuration.name}")
    log = folder / (re.sub(r"[^a-z]+", "-", configuration.name.lower()) + ".log")
    worker = start_worker(configuration, setting, log)
    up.callback(worker.stop)
    return worker


def _await(
    configuration: Configuration, worker: Worker, setting: Setting, say: Callable[[str], None]
) -> None:
    capacity = worker.ready()["kv_capacity"]
    if capacity != setting.kv_tokens:
        say(f"{configuration.name} has {capacity:,} tokens of KV instead of {setting.kv_tokens:,}")


def _write(prepared: Prepared, folder: Path) -> Mapping[bool, Path]:
    """The workload's two files: by whether it is in depth-first order."""
    orders = {False: prepared.workload, True: prepared.workload.take(prepared.workload.depth_first_order())}
    paths = {}
    for depth_first, workload in orders.items():
        paths[depth_first] = folder / f"{prepared.name}{'-dfs' if depth_first else ''}.npz"
        write_pool(paths[depth_first], workload)
    return paths

"""Two replicas on two cores against one replica on one core: real engines, a real model, by the clock.

    python -m benchmark.cpu_replicas
    python -m benchmark.cpu_replicas --documents 4 --rounds 1 --json cpu_replicas.json

Each replica is an engine with `--schedule-policy blend` whose processes are all kept on one core. A pool of
questions about documents is divided among them as `--dp-size` divides it, and answered whole by each of them
alone, in turn. What is timed is from handing a pool over to the last answer. The answers (greedy) of the
divided pool are compared with those of the whole one.

Other programs on the machine slow two replicas down more than one, which leaves them a core. So the ratio is
given by processor time, too: that of one replica alone, over that of the busier one of two at work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
from benchmark.offline.configurations import Configuration, Setting, sglang_options, start_sglang
from benchmark.offline.machine import describe_machine, exit_on_sigterm
from benchmark.offline.pool_file import write_pool
from benchmark.offline.protocol import Message, Worker
from benchmark.paper.arguments import at_least_one
from numpy.typing import NDArray

from sglang.batch.smollm2 import resolve_model_path
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.order.sharding import shard
from sglang.srt.blend.core.pool.workload import Workload

BAR = 1.85
"""How many times as fast two replicas should be as one."""

DOCUMENT, QUESTIONS, QUESTION, ANSWER = 256, 4, 24, 8
"""Tokens of a document, questions about each, tokens of a question, mean tokens of an answer."""

KV_TOKENS = 2048
"""A replica's cache, a fraction of what the pool needs: a decode step reads the weights for however many
answers, so two replicas that hold half of the pool each would take as many steps as one that holds it all."""


def questions(documents: int, seed: int) -> Workload:
    """Questions about documents, shuffled; how long each answer is to be is known."""
    rng = np.random.default_rng(seed)
    n = documents * QUESTIONS
    texts = rng.integers(1000, 30_000, (documents, DOCUMENT), np.int32)
    asked = rng.integers(1000, 30_000, (n, QUESTION), np.int32)
    prompts = np.concatenate([np.repeat(texts, QUESTIONS, axis=0), asked], axis=1)
    output = rng.integers(1, 2 * ANSWER, n, np.int32)
    workload = Workload(
        tokens=prompts.ravel(),
        offsets=np.arange(n + 1, dtype=np.int64) * prompts.shape[1],
        output=output,
        known=np.full(n, True),
        max_new_tokens=output,
        source=np.zeros(n, np.int16),
    )
    return workload.take(rng.permutation(n))


def divided(workload: Workload, model: str, parts: int) -> list[NDArray[np.int64]]:
    """The requests of each replica."""
    shape = ModelShape.from_config(json.loads((Path(model) / "config.json").read_text()))
    cost = CostModel(shape, load_hardware("cpu"))
    shards = shard(workload.tokens, workload.offsets, workload.output, cost, parts)
    return [part.requests for part in shards.parts]


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep this process, and what it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def check_pinned(worker: Worker, core: int) -> None:
    """Every thread of an engine is where it should be.

    Raises:
        SystemExit: an engine has moved a thread to another core.
    """
    first = psutil.Process(worker.pid)
    for process in [first, *first.children(recursive=True)]:
        for thread in process.threads():
            if (allowed := os.sched_getaffinity(thread.id)) != {core}:
                raise SystemExit(f"{process.name()} may run on cores {allowed}, not on {core} alone")


def cpu_seconds(worker: Worker) -> float:
    """Processor time that an engine's processes have had so far."""
    first = psutil.Process(worker.pid)
    times = [process.cpu_times() for process in [first, *first.children(recursive=True)]]
    return sum(time.user + time.system for time in times)


def answered(workers: Sequence[Worker], pools: Sequence[Path]) -> tuple[float, list[Message]]:
    """Let workers answer one pool each at the same time; seconds, and what each says and `cpu_seconds`."""

    def call(worker: Worker, pool: Path) -> Message:
        before = cpu_seconds(worker)
        message = worker.call({"pool": str(pool), "answers": True})
        return {**message, "cpu_seconds": cpu_seconds(worker) - before}

    began = time.perf_counter()
    with ThreadPoolExecutor(len(workers)) as threads:
        messages = list(threads.map(call, workers, pools))
    return time.perf_counter() - began, messages


def measure(arguments: argparse.Namespace, folder: Path, cores: Sequence[int]) -> dict[str, Any]:
    """Start replicas and time them in alternation."""
    model = resolve_model_path(arguments.model_path)
    workload = questions(arguments.documents, arguments.seed)
    parts = divided(workload, model, len(cores))
    whole, pools = folder / "whole.npz", [folder / f"part{core}.npz" for core in cores]
    write_pool(whole, workload)
    for path, part in zip(pools, parts, strict=True):
        write_pool(path, workload.take(part))
    setting = Setting(model, "float32", kv_tokens=KV_TOKENS, threads=1, hardware="cpu", context=KV_TOKENS)
    options = {**sglang_options(Configuration("blend"), setting), "kv_cache_dtype": "auto"}
    alone: dict[int, list[float]] = {core: [] for core in cores}
    together: list[float] = []
    cpu_alone: list[float] = []
    cpu_together: list[list[float]] = []
    expected: list[list[int]] = []
    differ = 0
    with ExitStack() as up:
        workers = []
        for core in cores:
            with pinned(core):
                workers.append(start_sglang(options, setting, folder / f"{core}.log"))
            up.callback(workers[-1].stop)
        for worker, core in zip(workers, cores, strict=True):
            worker.ready()
            check_pinned(worker, core)
        for number in range(arguments.rounds):
            for worker, core in zip(workers, cores, strict=True):
                seconds, [message] = answered([worker], [whole])
                alone[core].append(seconds)
                cpu_alone.append(message["cpu_seconds"])
                expected = message["answers"]
            seconds, messages = answered(workers, pools)
            together.append(seconds)
            cpu_together.append([message["cpu_seconds"] for message in messages])
            for part, message in zip(parts, messages, strict=True):
                pairs = zip(part.tolist(), message["answers"], strict=True)
                differ += sum(expected[i] != answer for i, answer in pairs)
            took = ", ".join(f"{some[-1]:.2f} s" for some in alone.values())
            print(
                f"round {number + 1}: alone {took}; together {seconds:.2f} s, processors {cpu_together[-1]}",
                flush=True,
            )
    one = statistics.median([seconds for some in alone.values() for seconds in some])
    return {
        "requests": len(workload),
        "prompt_tokens": len(workload.tokens),
        "alone_seconds": {str(core): some for core, some in alone.items()},
        "together_seconds": together,
        "alone_cpu_seconds": cpu_alone,
        "together_cpu_seconds": cpu_together,
        "speedup": one / statistics.median(together),
        "speedup_by_processor_time": statistics.median(cpu_alone) / statistics.median(map(max, cpu_together)),
        "bar": BAR,
        "answers_compared": arguments.rounds * len(workload),
        "answers_that_differ": differ,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.cpu_replicas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model-path", default="smollm2", help="default: smollm2, embedded")
    parser.add_argument("--documents", type=at_least_one, default=32, help="with four questions each (32)")
    parser.add_argument("--rounds", type=at_least_one, default=3, help="default: 3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_args()
    exit_on_sigterm()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        parser.error("this machine has one core; two replicas need two")
    with TemporaryDirectory(prefix="cpu-replicas-") as folder:
        figures = measure(arguments, Path(folder), cores)
    record = {
        "command": f"python -m benchmark.cpu_replicas {' '.join(sys.argv[1:])}".strip(),
        "seed": arguments.seed,
        "machine": describe_machine(),
        **figures,
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    print(
        f"two replicas are {figures['speedup']:.2f}x as fast as one (bar {BAR}x),"
        f" {figures['speedup_by_processor_time']:.2f}x by processor time;"
        f" {figures['answers_that_differ']} of {figures['answers_compared']} answers differ"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""CPU time that `blend` adds to a scheduler step over `fcfs`, at 1,000 running and 40,000 waiting requests.

    python -m benchmark.scheduler_overhead

SGLang's real scheduler on a simulated GPU: prompts with a shared prefix, passes that hold prefill and decode,
1,000 running requests all the time. A step is everything between two forward passes: policy, admission,
radix tree, batches, results. Re-plans are steps like any other.

What a step costs depends first of all on which requests it admits, ends and decodes, and blend admits others
than arrival order does. So `fcfs` repeats what `blend` did: before the first step its queue is put into the
order in which blend admitted, and each step admits as many. What is left between the two is what blend itself
computes. A third run repeats it on upstream's radix tree in Python, from which blend's is derived, where fcfs
has one in Rust. All run in processes of their own, one after the other, several rounds in alternation.

Two processes differ by a millisecond and more for reasons of their own. So each run is sampled as well, four
times per millisecond: is the innermost SGLang function one of blend's? Its tree is mostly upstream's,
which is not counted there. `fcfs`, which runs none of blend's but a few hooks, shows how far off samples are.
Looking takes a good part of the time between two looks, which is measured and left out of all figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUNNING, WAITING = 1000, 40_000
# Output tokens. Short enough that the KV of all that run fits whoever they are: their number is the limit.
OUTPUT = (150, 250)

# Each run's policy, and the tree core that it must have; "" is upstream's choice.
RUNS = {"blend": ("blend", ""), "fcfs": ("fcfs", ""), "fcfs_python_tree": ("fcfs", "python")}

SAMPLE = 0.25e-3
"""Seconds between two looks at what runs."""

Schedule = list[list[int]]
"""Numbers of the requests that each step admitted, in order."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.scheduler_overhead", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--running", type=int, default=RUNNING)
    parser.add_argument("--waiting", type=int, default=WAITING)
    parser.add_argument("--steps", type=int, default=1000, help="measured, after as many to settle")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    os.environ["SGLANG_PLATFORM"] = "simulated_gpu"  # of the processes that are started below
    sizes = (arguments.running, arguments.waiting, arguments.steps)
    rounds: dict[str, list[dict[str, float]]] = {run: [] for run in RUNS}
    for _ in range(arguments.rounds):
        schedule: Schedule | None = None
        for run, (policy, tree_core) in RUNS.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                result, schedule = pool.apply(measure, (policy, *sizes, schedule, tree_core))
            rounds[run].append(result)
            print(run, {name: round(value, 3) for name, value in result.items()}, flush=True)
    figures = {
        f"{run}_{name}": median(result[name] for result in results)
        for run, results in rounds.items()
        for name in results[0]
    }
    for name in ("mean_ms", "p99_ms"):
        figures[f"added_{name}"] = figures[f"blend_{name}"] - figures[f"fcfs_{name}"]
        figures[f"tree_{name}"] = figures[f"fcfs_python_tree_{name}"] - figures[f"fcfs_{name}"]
    print(
        f"added per step: {figures['added_mean_ms']:.3f} ms mean, {figures['added_p99_ms']:.3f} ms p99, "
        f"of which upstream's tree in Python {figures['tree_mean_ms']:.3f} and {figures['tree_p99_ms']:.3f} "
        f"(medians of {arguments.rounds} rounds; the bar is 0.3 ms mean, 2 ms p99)\n"
        f"in functions of blend: {figures['blend_inside_mean_ms']:.3f} ms mean, "
        f"{figures['blend_inside_p99_ms']:.3f} ms p99, of a step of {figures['blend_mean_ms']:.1f} ms"
    )
    if arguments.json:
        named = dict(zip(("running", "waiting", "steps"), sizes, strict=True))
        arguments.json.write_text(json.dumps({**named, **figures}, indent=2) + "\n")


def measure(
    policy: str, running: int, waiting: int, steps: int, repeat: Schedule | None = None, tree_core: str = ""
) -> tuple[dict[str, float], Schedule]:
    """Milliseconds of CPU per scheduler step, with the state it was in; and what was admitted.

    Args:
        repeat: admit this; None leaves it to the policy.
        tree_core: name of upstream's radix tree to use.
    """
    if tree_core:
        os.environ["SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND"] = tree_core
    from benchmark.paper.models import MODELS

    from sglang.srt.hardware_backend.simulated_gpu import lone_scheduler
    from sglang.srt.hardware_backend.simulated_gpu.simulated_scheduler import queue_kept, simulated_scheduler

    requests = make_requests(running + waiting + 2 * steps * running // OUTPUT[0])
    arguments: dict[str, Any] = {"blend_engine": "mixed"} if policy == "blend" else {}
    with simulated_scheduler(
        MODELS["llama-3-8b"].config,
        hardware="a100-80gb",
        engine="mixed",
        on_finish=lambda *_: None,
        schedule_policy=policy,
        max_running_requests=running,
        context_length=8192,
        chunked_prefill_size=8192,
        **arguments,
    ) as scheduler:
        for number, (prompt, output) in enumerate(requests):
            lone_scheduler.submit(
                scheduler, str(number), prompt, max_new_tokens=output, sampling={"ignore_eos": True}
            )
        limit = None
        if repeat is not None:
            # The same objects in another order: a walk over requests takes as long as memory makes it wait.
            first = [number for step in repeat for number in step]
            rest = np.setdiff1d(np.arange(len(requests)), first).tolist()
            scheduler.waiting_queue = [scheduler.waiting_queue[number] for number in first + rest]
            limit = _limit_admissions(scheduler)
        seconds, inside, sizes, seen = [], [], [], set()
        schedule: Schedule = []
        with queue_kept(), _samples("/sglang/srt/blend/") as samples:
            for step in range(2 * steps):
                if limit is not None and repeat is not None:
                    limit.allowed += len(repeat[step])
                begin, before = time.thread_time(), samples.count()
                lone_scheduler.step(scheduler)
                hits, looks, looking = samples.count() - before
                took = time.thread_time() - begin - looking
                batch = [int(request.rid) for request in scheduler.last_batch.reqs]
                schedule.append([number for number in batch if number not in seen])
                seen.update(schedule[-1])
                if step >= steps:
                    seconds.append(took)
                    inside.append(took * hits / max(looks, 1))
                    sizes.append((len(batch), len(schedule[-1]), len(scheduler.waiting_queue)))
    milliseconds = 1e3 * np.array(seconds)
    figures = {
        "mean_ms": float(milliseconds.mean()),
        "median_ms": float(np.median(milliseconds)),
        "p99_ms": float(np.quantile(milliseconds, 0.99)),
        "inside_mean_ms": 1e3 * float(np.mean(inside)),
        "inside_p99_ms": 1e3 * float(np.quantile(inside, 0.99)),
    }
    means = np.mean(sizes, axis=0)
    return figures | dict(zip(("running", "admitted", "waiting"), means.tolist(), strict=True)), schedule


def make_requests(count: int) -> list[tuple[Any, int]]:
    """Prompts, of which each 64th shares 128 tokens, and the number of tokens of their answers."""
    rng = np.random.default_rng(0)
    prefixes = rng.integers(1000, 32_000, (64, 128))
    return [
        (
            np.concatenate([prefixes[i % 64], rng.integers(1000, 32_000, rng.integers(20, 200))]),
            int(rng.integers(*OUTPUT)),
        )
        for i in range(count)
    ]


class _Samples:
    """How many samples found a function of one folder innermost among SGLang's, without the device's."""

    def __init__(self, folder: str) -> None:
        self._hits = self._looks = 0
        self._looking = 0.0
        self._folder = folder

    def count(self) -> NDArray[np.float64]:
        """So far: samples that found one, all samples, CPU seconds that looking took."""
        return np.array([self._hits, self._looks, self._looking])

    def take(self, _: int, frame: FrameType | None) -> None:
        begin = time.thread_time()
        files = []
        while frame is not None:
            files.append(frame.f_code.co_filename)
            frame = frame.f_back
        innermost = next((file for file in files if "/sglang/" in file), "")
        self._hits += self._folder in innermost and not any("/simulated_gpu/device" in file for file in files)
        self._looks += 1
        self._looking += time.thread_time() - begin


@contextlib.contextmanager
def _samples(folder: str) -> Iterator[_Samples]:
    samples = _Samples(folder)
    before = signal.signal(signal.SIGALRM, samples.take)
    signal.setitimer(signal.ITIMER_REAL, SAMPLE, SAMPLE)
    try:
        yield samples
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _limit_admissions(scheduler: Any) -> Any:
    """Let upstream's adder admit no more than `allowed`, an attribute of what is returned."""
    original = scheduler.get_prefill_adder_class()

    class Limited(original):  # type: ignore[misc,valid-type]
        allowed = 0

        def add_one_req(self, req: Any, *args: Any, **kwargs: Any) -> Any:
            from sglang.srt.managers.schedule_policy import AddReqResult

            if Limited.allowed <= 0:
                return AddReqResult.OTHER
            admitted = len(self.can_run_list)
            result = super().add_one_req(req, *args, **kwargs)
            Limited.allowed -= len(self.can_run_list) - admitted
            return result

    scheduler.get_prefill_adder_class = lambda: Limited
    return Limited


if __name__ == "__main__":
    main()

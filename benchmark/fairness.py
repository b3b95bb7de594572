"""How long requests wait that a stream of others could keep waiting: fcfs and blend on a simulated GPU.

    python -m benchmark.fairness --json benchmark/results/fairness.json

A client keeps some requests waiting; now and then an odd one is among them: a long answer in a stream of
long prompts, a long prompt in a stream of long answers, something between the two in a stream of both.
Printed is the longest wait of a run: in modelled seconds (of odd ones and of any), in requests admitted
meanwhile, and in requests that came later and went first, with their tokens. "plan only" is blend without
its bound on waiting. Exit code 1 if a request waits beyond the bound that docs/algorithm.md states.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmark import provenance
from benchmark.paper.arguments import at_least_one
from benchmark.paper.models import MODELS
from numpy.typing import NDArray
from tqdm import tqdm

from sglang.srt.blend.core.order.plan import PlannerOptions

DENSE, BETWEEN, HEAVY = (1500, 8), (500, 60), (30, 400)
"""Prompt and output tokens."""

KV_TOKENS = 24_000

ENGINES = ("alternating", "mixed")

ODD = 40
"""Every so many requests one is odd."""

PATIENCE = PlannerOptions().patience
"""The default of --blend-patience."""

STREAMS = {
    "heavy among dense": ([DENSE], HEAVY),
    "dense among heavy": ([HEAVY], DENSE),
    "between dense and heavy": ([DENSE, HEAVY], BETWEEN),
}

POLICIES: dict[str, dict[str, Any]] = {
    "fcfs": {"schedule_policy": "fcfs"},
    "blend": {"schedule_policy": "blend", "blend_patience": PATIENCE, "blend_hardware": "a100-80gb"},
    "plan only": {
        "schedule_policy": "blend",
        "blend_patience": float("inf"),
        "blend_hardware": "a100-80gb",
    },
}

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """The longest waits of a run.

    Attributes:
        odd_seconds, seconds: modelled seconds from arrival to the first prefill, of odd requests and of all.
        admitted: other requests admitted meanwhile.
        overtaken: later ones admitted before a request; overtaking_tokens: of their prompts and answers.
        waiting: requests that waited at once, at most.
        bound: of `admitted`; None where nothing is promised.
        total_seconds: modelled, of the run.
    """

    stream: str
    engine: str
    policy: str
    odd_seconds: float
    seconds: float
    admitted: int
    overtaken: int
    overtaking_tokens: int
    waiting: int
    bound: float | None
    total_seconds: float

    @property
    def kept(self) -> bool:
        """Whether nobody waited beyond the bound."""
        return self.bound is None or self.admitted <= self.bound


@dataclass
class Waits:
    """When requests came and began; lists by number, in order of arrival.

    Attributes:
        came, began: modelled seconds.
        admitted_before: how many had been admitted when it came.
        place: in the order of admission, from 0.
    """

    came: list[float] = field(default_factory=list)
    admitted_before: list[int] = field(default_factory=list)
    began: dict[int, float] = field(default_factory=dict)
    place: dict[int, int] = field(default_factory=dict)
    waiting: int = 0
    total_seconds: float = 0.0


def requests(stream: str, count: int) -> tuple[list[tuple[int, int]], NDArray[np.bool_]]:
    """Prompt and output tokens of a stream's requests, and which of them are odd."""
    kinds, odd = STREAMS[stream]
    is_odd = np.arange(count) % ODD == ODD - 1
    return [odd if is_odd[i] else kinds[i % len(kinds)] for i in range(count)], is_odd


def run(stream: str, engine: str, policy: str, *, count: int, waiting: int, seed: int) -> Waits:
    """Keep so many requests of a stream waiting until `count` have come, and answer them all."""
    from sglang.srt.hardware_backend.simulated_gpu import lone_scheduler
    from sglang.srt.hardware_backend.simulated_gpu.hooks import device_of
    from sglang.srt.hardware_backend.simulated_gpu.simulated_scheduler import simulated_scheduler

    rng, waits, ended = np.random.default_rng(seed), Waits(), set[str]()
    shapes, _ = requests(stream, count)
    with simulated_scheduler(
        MODELS["llama-3-8b"].config,
        hardware="a100-80gb",
        engine=engine,
        on_finish=lambda rid, *_: ended.add(rid),
        context_length=4096,
        max_total_tokens=KV_TOKENS,
        max_running_requests=256,
        chunked_prefill_size=2048,
        enable_mixed_chunk=engine == "mixed",
        **POLICIES[policy],
    ) as scheduler:
        device = device_of(scheduler.tp_worker)
        while len(ended) < count:
            for i in range(len(waits.came), min(len(waits.came) + waiting, count)):
                if len(scheduler.waiting_queue) >= waiting:
                    break
                prompt, output = shapes[i]
                waits.came.append(device.clock)
                waits.admitted_before.append(len(waits.place))
                lone_scheduler.submit(
                    scheduler,
                    str(i),
                    rng.integers(1000, 100_000, prompt).tolist(),
                    max_new_tokens=output,
                    sampling={"ignore_eos": True},
                )
            waits.waiting = max(waits.waiting, len(scheduler.waiting_queue))
            begin = device.clock
            batch = lone_scheduler.step(scheduler)
            for request in batch.reqs if batch is not None else ():
                number = int(request.rid)
                if number not in waits.place:
                    waits.place[number], waits.began[number] = len(waits.place), begin
        waits.total_seconds = device.clock
    return waits


def row(stream: str, engine: str, policy: str, waits: Waits) -> Row:
    """The longest waits of a run."""
    shapes, odd = requests(stream, len(waits.came))
    order = np.arange(len(shapes))
    place = np.array([waits.place[i] for i in order])
    seconds = np.array([waits.began[i] for i in order]) - np.array(waits.came)
    tokens = np.array([prompt + output for prompt, output in shapes])
    later = [(order > i) & (place < place[i]) for i in order]
    patience = POLICIES[policy].get("blend_patience", float("inf"))
    return Row(
        stream=stream,
        engine=engine,
        policy=policy,
        odd_seconds=round(float(seconds[odd].max()), 2),
        seconds=round(float(seconds.max()), 2),
        admitted=int((place - np.array(waits.admitted_before)).max()),
        overtaken=max(int(others.sum()) for others in later),
        overtaking_tokens=max(int(tokens[others].sum()) for others in later),
        waiting=waits.waiting,
        bound=None if patience == float("inf") else 2 * (patience + 1) * waits.waiting,
        total_seconds=round(waits.total_seconds, 2),
    )


def table(rows: Sequence[Row]) -> str:
    """One line for each run."""
    head = (
        f"{'stream':<24}{'engine':<12}{'policy':<10}{'odd s':>8}{'any s':>8}{'admitted':>10}{'bound':>7}"
        f"{'overtaken':>11}{'tokens':>9}{'run s':>8}"
    )
    lines = [
        f"{row.stream:<24}{row.engine:<12}{row.policy:<10}{row.odd_seconds:>8.2f}{row.seconds:>8.2f}"
        f"{row.admitted:>10}{'-' if row.bound is None else f'{row.bound:.0f}':>7}"
        f"{row.overtaken:>11}{row.overtaking_tokens:>9}{row.total_seconds:>8.2f}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.fairness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=at_least_one, default=400, help="of each run")
    parser.add_argument("--waiting", type=at_least_one, default=40, help="requests kept waiting")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # of each server's start
    code = provenance.commit()
    runs = [(s, e, p) for s in STREAMS for e in arguments.engines for p in POLICIES]
    sizes = {"count": max(arguments.requests, ODD), "waiting": arguments.waiting, "seed": arguments.seed}
    rows = [row(*named, run(*named, **sizes)) for named in tqdm(runs, unit="run")]
    print(table(rows))
    if arguments.json is not None:
        command = f"python -m benchmark.fairness {' '.join(sys.argv[1:])}"
        written = {"command": command.strip(), "commit": code, **sizes, "rows": [asdict(one) for one in rows]}
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    broken = [one for one in rows if not one.kept]
    for one in broken:
        print(f"{one.stream}, {one.engine}, {one.policy}: {one.admitted} admitted, beyond {one.bound:.0f}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

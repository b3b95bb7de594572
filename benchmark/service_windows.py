"""Whether `sglang-batch serve` keeps windows, and what that costs: its own admission over a simulated GPU.

    python -m benchmark.service_windows --json benchmark/results/service_windows.json

Two batches share one engine. The second comes later and has a nearer deadline. The service's room and shared
engine are those of the service; below them SGLang's scheduler runs under blend on a simulated GPU, and the
clock is the GPU's. Each case runs twice, with windows of a day and with the deadline. Printed are when both
batches end, and what the deadline adds to the whole.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmark import provenance
from benchmark.paper.arguments import add_jobs
from benchmark.paper.models import MODELS
from benchmark.workloads.lengths import LengthDistribution
from benchmark.workloads.traces import TraceSpec, make_trace

from sglang.batch.plan.schedules import simulator_processes
from sglang.batch.records import Answer, BatchRequest, Usage
from sglang.batch.run.barrier import Barrier, NoBarrier
from sglang.batch.serve.pace import OUTPUT_WEIGHT, Costs
from sglang.batch.serve.room import Room, Seat, Terms
from sglang.batch.serve.shared_engine import WATCH, SharedEngine
from sglang.srt.blend.core.pool.output_length import prior_tokens
from sglang.srt.blend.core.pool.workload import Workload

DAY = 86_400.0

TRACES = {
    "chats": TraceSpec(
        LengthDistribution(246, 250, 8, 2048), LengthDistribution(50, 40, 1, 100), 5, max_new_tokens=100
    ),
    "documents": TraceSpec(
        LengthDistribution(2508, 1500, 32, 8192), LengthDistribution(20, 20, 1, 100), 25, max_new_tokens=100
    ),
    "labels": TraceSpec(
        LengthDistribution(804, 60, 700, 2048), LengthDistribution(2), 691, max_new_tokens=8, groups=57
    ),
}
"""What lines are like: short answers, so that minutes are many times as long as one of them takes. Labels are
the MMLU of the paper's traces."""

MODEL, HARDWARE, ENGINE, CHUNK = "llama-3-8b", "a100-80gb", "overlapped", 1_024

KV_TOKENS = 32_768
"""Of the engine: few, so that short runs are many times as long as one answer takes."""


@dataclass(frozen=True)
class Case:
    """Two batches.

    Attributes:
        first, second: traces and their lines.
        comes: part of the first's lines that are done when the second comes.
        window: of the second, in times that is left then until both are done without deadlines.
    """

    name: str
    first: tuple[str, int]
    second: tuple[str, int]
    comes: float = 0.2
    window: float = 0.5


CASES = (
    Case("chats among chats", ("chats", 4000), ("chats", 1000)),
    Case("chats among documents", ("documents", 500), ("chats", 1000)),
    Case("documents among chats", ("chats", 4000), ("documents", 100)),
    Case("labels among chats", ("chats", 4000), ("labels", 1000)),
    Case("chats among chats, no hurry", ("chats", 4000), ("chats", 1000), window=2.5),
)


@dataclass(frozen=True)
class Batch:
    """A batch as it is run.

    Attributes:
        after: lines of all batches that are done when it comes.
        window: seconds.
        key: whose it is.
    """

    name: str
    workload: Workload
    after: int = 0
    window: float = DAY
    key: str = ""


@dataclass
class Outcome:
    """What came out of a run.

    Attributes:
        begins, ends: second at which each batch came and ended, by name.
        seconds: until all had.
    """

    begins: dict[str, float] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """A case, run with and without its deadline; seconds are the simulated GPU's.

    Attributes:
        comes, deadline: of the second batch.
        without, with_deadline: when the second batch ended.
        total_without, total_with: when all had ended.
    """

    name: str
    comes: float
    deadline: float
    without: float
    with_deadline: float
    total_without: float
    total_with: float

    @property
    def kept(self) -> bool:
        """Whether the second batch ended in its window."""
        return self.with_deadline <= self.deadline

    @property
    def cost(self) -> float:
        """What the deadline adds to the whole, relative."""
        return self.total_with / self.total_without - 1.0


class SimulatedEngine:
    """SGLang's scheduler on a simulated GPU as the engine of a service, stepped while anybody waits.

    Args:
        scheduler: a lone one.
        prompts, outputs: token ids and output tokens of each line, by custom_id.
    """

    def __init__(self, scheduler: Any, batches: Sequence[Batch]) -> None:
        from sglang.srt.hardware_backend.simulated_gpu.hooks import device_of

        self.device = device_of(scheduler.tp_worker)
        self._scheduler = scheduler
        self._workloads = {batch.name: batch.workload for batch in batches}
        self.waiting: dict[str, asyncio.Future[None]] = {}
        self.device.lengths = {
            f"{batch.name}/{i}": int(batch.workload.output[i])
            for batch in batches
            for i in np.flatnonzero(~batch.workload.known)
        }

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def barrier(self) -> Barrier:
        return NoBarrier()

    async def internal_state(self) -> list[dict[str, Any]]:
        from sglang.srt.blend.runtime.metrics import internal_state

        return [{"blend": internal_state(self._scheduler.blend)}]

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        from sglang.srt.hardware_backend.simulated_gpu import lone_scheduler

        workload, i = self._workloads[request.body["batch"]], request.line
        prompt = request.body["prompt"]
        lone_scheduler.submit(
            self._scheduler,
            request_id,
            prompt,
            max_new_tokens=int(workload.max_new_tokens[i]),
            sampling={"ignore_eos": bool(workload.known[i])},
            priority=request.body["priority"],
        )
        self.waiting[request_id] = asyncio.get_running_loop().create_future()
        await self.waiting[request_id]
        return Answer(200, b"{}", Usage(len(prompt), 0, int(workload.output[i])))

    def finished(self, request_id: str, *_: Any) -> None:
        self.waiting.pop(request_id).set_result(None)

    def step(self) -> None:
        """One pass; without anything to do a second passes."""
        from sglang.srt.hardware_backend.simulated_gpu import lone_scheduler

        before = self.device.clock
        if lone_scheduler.step(self._scheduler) is None and self.device.clock == before and not self.waiting:
            self.device.clock += 1.0


def expected_costs(batch: Batch) -> Costs:
    """What the service expects of a batch by its file: its prompts, and the caps on its answers."""
    output = float(prior_tokens(batch.workload.max_new_tokens).mean())
    return Costs(float(batch.workload.prompt.mean()) + OUTPUT_WEIGHT * output)


Look = Callable[[float, dict[str, Seat], Room], None]
"""Told the second and the seats of all batches that have come, by name, before each pass."""


async def serve(
    engine: SimulatedEngine,
    batches: Sequence[Batch],
    *,
    costs: Callable[[Batch], Costs] = lambda batch: Costs(),
    look: Look = lambda second, seats, room: None,
) -> Outcome:
    """Run batches as the service does, each from its beginning on.

    Args:
        costs: what is expected of a batch that comes.
        look: looks on.
    """
    outcome = Outcome()
    seats: dict[str, Seat] = {}

    def clock() -> float:
        return float(engine.device.clock)

    shared = SharedEngine(
        engine,
        alive=lambda: True,
        room=Room(50_000, clock=clock),
        priorities=True,
        restarts=0,
        say=lambda text: None,
    )
    await shared.up()
    left = {batch.name: len(batch.workload) for batch in batches}

    async def line(job: Any, batch: Batch, i: int) -> None:
        prompt = batch.workload.prompt_tokens(i).tolist()
        request = BatchRequest(i, f"{i}", "/v1/completions", {"batch": batch.name, "prompt": prompt})
        await job.answer(request, f"{batch.name}/{i}")
        left[batch.name] -= 1

    async def run(batch: Batch) -> None:
        outcome.begins[batch.name] = begin = clock()
        terms = Terms(batch.key, 4.0, begin, begin + batch.window)
        job = shared.for_job(terms, lambda: left[batch.name], costs(batch))
        seats[batch.name] = job.seat
        await asyncio.gather(*(line(job, batch, i) for i in range(len(batch.workload))))
        job.leave()
        del seats[batch.name]
        outcome.ends[batch.name] = clock()

    coming = sorted(batches, key=lambda batch: batch.after)
    lines = sum(left.values())
    running: list[asyncio.Task[None]] = []
    asked = 0.0
    while coming or not all(task.done() for task in running):
        while coming and coming[0].after <= lines - sum(left.values()):
            running.append(asyncio.ensure_future(run(coming.pop(0))))
        for _ in range(8):  # turns of the loop, until all that can be submitted is
            await asyncio.sleep(0)
        shared.room.look()
        for _ in range(4):
            await asyncio.sleep(0)
        if clock() >= asked + WATCH:
            asked = clock()
            await shared.ask(asked)
        look(clock(), seats, shared.room)
        engine.step()
    for task in running:
        task.result()
    outcome.seconds = clock()
    return outcome


def simulate_service(batches: Sequence[Batch], **told: Any) -> Outcome:
    """Run batches in this process, started with SGLANG_PLATFORM=simulated_gpu; `told` as `serve` takes it."""
    with _scheduler(batches) as engine:
        return asyncio.run(serve(engine, batches, **told))


@contextmanager
def _scheduler(batches: Sequence[Batch]) -> Iterator[SimulatedEngine]:
    from sglang.srt.hardware_backend.simulated_gpu.simulated_scheduler import queue_kept, simulated_scheduler

    longest = max(int((batch.workload.prompt + batch.workload.max_new_tokens).max()) for batch in batches)
    with simulated_scheduler(
        MODELS[MODEL].config,
        hardware=HARDWARE,
        engine=ENGINE,
        on_finish=lambda *ended: engine.finished(*ended),
        schedule_policy="blend",
        blend_hardware=HARDWARE,
        blend_engine=ENGINE,
        context_length=longest + 8,
        max_total_tokens=KV_TOKENS,
        chunked_prefill_size=CHUNK,
        enable_priority_scheduling=True,
        disable_priority_preemption=True,
        default_priority_value=0,
    ) as scheduler:
        engine = SimulatedEngine(scheduler, batches)
        with queue_kept():
            yield engine


def lines_of(trace: str, lines: int, *, seed: int) -> Workload:
    """Lines of one of the TRACES."""
    return make_trace(trace, lines, seed=seed, specs=TRACES)


def batches_of(case: Case, *, scale: float, seed: int) -> tuple[Workload, Workload]:
    """The lines of a case's batches."""
    first, second = (
        lines_of(name, max(int(lines * scale), 1), seed=seed + number)
        for number, (name, lines) in enumerate((case.first, case.second))
    )
    return first, second


def run_case(case: Case, *, scale: float, seed: int, expect: bool = False) -> Row:
    """Run a case without and with its deadline; see `main` for `expect`."""
    told = {"costs": expected_costs} if expect else {}
    first, second = batches_of(case, scale=scale, seed=seed)
    after = int(case.comes * len(first))
    free = simulate_service([Batch("first", first), Batch("second", second, after)], **told)
    comes = free.begins["second"]
    window = case.window * (free.seconds - comes)
    kept = simulate_service([Batch("first", first), Batch("second", second, after, window)], **told)
    return Row(
        name=case.name,
        comes=round(comes, 2),
        deadline=round(comes + window, 2),
        without=round(free.ends["second"], 2),
        with_deadline=round(kept.ends["second"], 2),
        total_without=round(free.seconds, 2),
        total_with=round(kept.seconds, 2),
    )


HEAD = f"{'case':<30}{'comes':>8}{'deadline':>10}{'ends':>8}{'free':>8}{'all':>8}{'free':>8}{'cost':>8}"


def text(row: Row) -> str:
    """One line of the table."""
    return (
        f"{row.name:<30}{row.comes:>8.1f}{row.deadline:>10.1f}{row.with_deadline:>8.1f}{row.without:>8.1f}"
        f"{row.total_with:>8.1f}{row.total_without:>8.1f}{row.cost:>+8.1%}{'' if row.kept else '  LATE'}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.service_windows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_jobs(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="lines, in times of those of the cases")
    parser.add_argument(
        "--expect", action="store_true", help="begin with what files let expect of lines, as the service does"
    )
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)), help="numbers, from 0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row")
    arguments = parser.parse_args()
    chosen = [CASES[number] for number in arguments.cases]
    with simulator_processes(arguments.jobs) as executor:
        futures = [
            executor.submit(
                run_case, case, scale=arguments.scale, seed=arguments.seed, expect=arguments.expect
            )
            for case in chosen
        ]
        rows = []
        print(HEAD)
        for future in futures:
            rows.append(future.result())
            print(text(rows[-1]), flush=True)
    if arguments.json is not None:
        written = {
            "command": f"python -m benchmark.service_windows {' '.join(sys.argv[1:])}",
            "commit": provenance.commit(),
            "seed": arguments.seed,
            "scale": arguments.scale,
            "rows": [asdict(row) | {"kept": row.kept, "cost": round(row.cost, 4)} for row in rows],
        }
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

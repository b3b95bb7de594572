"""One run of `sglang-batch run` with an engine that answers at once, and what it cost; for `batch_overhead`.

The engine holds its answers until the pool is full, as SGLang's schedulers do behind the barrier, so that
the peak of memory contains a whole pool. It is in this process, or in a worker process as SGLang is.
`--no-journal` leaves out everything that makes a run a job: lines are read once, answered, and their records
written as they come; nothing is compared, entered or synced.

    python -m benchmark.echo_batch --figures FILE [--worker] [--no-journal] -i IN -o OUT [flags of run]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO

import msgspec
import psutil

# Upstream's package takes seconds and 700 MiB to import, torch and all; nothing here needs it.
_package = ModuleType("sglang")
_package.__path__ = list(importlib.util.find_spec("sglang").submodule_search_locations)
sys.modules["sglang"] = _package

# ruff: noqa: E402
from sglang.batch.input.lines import read_lines
from sglang.batch.media import MediaGate
from sglang.batch.records import Answer, BatchRequest, Usage, parse_lines
from sglang.batch.run.arguments import RunArguments, add_run_arguments, check_run
from sglang.batch.run.barrier import Barrier
from sglang.batch.run.command import collecting_rarely, run
from sglang.batch.run.committer import Finished
from sglang.batch.run.engine.protocol import Engine
from sglang.batch.run.engine.supervisor import Supervisor
from sglang.batch.run.engine.worker import serve
from sglang.batch.run.job import BatchJob
from sglang.batch.run.recovery import OpenJob, Work
from sglang.batch.run.tally import Tally


class Clock:
    """When the parts of a run ended, in seconds of the wall and of this process' processor time."""

    def __init__(self) -> None:
        self.began = psutil.Process().create_time()
        self.figures: dict[str, float] = {}

    def note(self, part: str) -> None:
        self.figures[f"{part}_at"] = round(time.time() - self.began, 3)
        self.figures[f"{part}_cpu"] = round(time.process_time(), 3)


class Echo:
    """Answers a completion with its own prompt once the barrier is open."""

    def __init__(self) -> None:
        self.first: float | None = None
        self._open = asyncio.Event()
        self._open.set()

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        await self._open.wait()
        self.first = self.first or time.time()
        choice = {"index": 0, "text": request.body["prompt"], "logprobs": None, "finish_reason": "stop"}
        body = {
            **{"id": request_id, "object": "text_completion", "created": 0, "model": "echo"},
            "choices": [choice],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }
        return Answer(200, msgspec.json.encode(body), Usage(10, 0, 5))

    async def internal_state(self) -> list[dict[str, Any]]:
        return [{"memory_usage": {"token_capacity": 4000}}]

    def barrier(self) -> Barrier:
        return self

    async def close(self) -> None:
        self._open.clear()

    async def settle(self, in_flight: object, request_ids: object) -> None:
        pass

    async def open(self) -> None:
        self._open.set()


class EchoHere(Echo):
    """In the runner's process."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    async def start(self) -> None:
        self._clock.note("scanned")
        self._clock.note("started")

    async def stop(self) -> None:
        self._clock.note("answered")


class EchoInWorker(Supervisor):
    """In a process of its own."""

    def __init__(self, clock: Clock, figures: Path, job: str) -> None:
        worker = [sys.executable, "-m", "benchmark.echo_batch", "--serve"]
        super().__init__(worker, [str(figures)], job=job, stall=600.0)
        self._clock = clock

    async def start(self) -> None:
        self._clock.note("scanned")
        await super().start()
        self._clock.note("started")

    async def stop(self) -> None:
        self._clock.note("answered")
        await super().stop()


class EchoWorker(Echo):
    """The worker's side."""

    def __init__(self, flags: list[str]) -> None:
        self.loop = asyncio.new_event_loop()
        super().__init__()
        self._figures = Path(flags[0])
        self._imported = time.process_time()

    def install_signal_handlers(self) -> None:
        pass

    def progress(self) -> list[float]:
        return []

    def shutdown(self) -> None:
        figures = {"first": self.first, "peak_mib": _peak_mib(), "imported_cpu": self._imported}
        self._figures.write_bytes(msgspec.json.encode(figures))


class PlainWriter:
    """In the place of a committer: records go into a file as they come."""

    def __init__(self, file: BinaryIO, on_commit: Callable[[Finished], object]) -> None:
        self._file = file
        self._on_commit = on_commit
        self.open = asyncio.Event()
        self.open.set()

    async def commit(self, finished: Finished) -> None:
        self._file.write(finished.record)
        self._on_commit(finished)


async def without_journal(arguments: RunArguments, engine: Engine, source: Path) -> None:
    """Answer every line; who has which custom_id is kept in memory."""
    await engine.start()
    with source.open("rb") as lines, arguments.files.output.open("wb") as output:
        job = BatchJob(
            MediaGate(engine, arguments.media),
            lambda on_commit: PlainWriter(output, on_commit),
            tally=Tally(),
            pool=arguments.pool,
            barrier=engine.barrier(),
        )
        items = parse_lines(read_lines(lines))
        await job.run(Work(position, item, None) for position, item in enumerate(items))
    await engine.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add_run_arguments(parser)
    parser.add_argument("--figures", type=Path, required=True)
    parser.add_argument("--worker", action="store_true", help="the engine in a process of its own")
    parser.add_argument("--no-journal", action="store_true")
    parser.add_argument("--model-path", default="echo")
    options = parser.parse_args()
    clock = Clock()
    clock.note("imported")
    arguments = check_run(options, [])
    worker_figures = options.figures.with_suffix(".worker")
    engines: list[Echo | EchoInWorker] = []

    def make_engine(job: OpenJob | None) -> Engine:
        name = "overhead" if job is None else job.id
        engines.append(EchoInWorker(clock, worker_figures, name) if options.worker else EchoHere(clock))
        return engines[0]

    if options.no_journal:
        with collecting_rarely():
            asyncio.run(without_journal(arguments, make_engine(None), Path(options.input[0])))
        code = 0
    else:
        server_args = SimpleNamespace(
            **{"model_path": "echo", "schedule_policy": "fcfs", "device": "cpu", "max_queued_requests": None}
        )
        code = run(arguments, server_args, make_engine)
    clock.note("ended")
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    figures = {
        **clock.figures,
        "runner_cpu": round(used[0].ru_utime + used[0].ru_stime, 3),
        "worker_cpu": round(used[1].ru_utime + used[1].ru_stime, 3),
        "runner_peak_mib": _peak_mib(),
    }
    worker = {"first": getattr(engines[0], "first", None), "imported_cpu": 0.0}
    if options.worker:
        worker = msgspec.json.decode(worker_figures.read_bytes())
    figures["first_answer_at"] = round(worker.pop("first") - clock.began, 3)
    figures |= {f"worker_{name}": value for name, value in worker.items()}
    options.figures.write_bytes(msgspec.json.encode(figures))
    return code


def _peak_mib() -> float:
    """Peak of this process alone; what `getrusage` says contains whoever started it."""
    status = Path("/proc/self/status").read_text()
    return round(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024, 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(EchoWorker, sys.argv[2:])
    else:
        sys.exit(main())

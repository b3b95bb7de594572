"""How many lines per second the driver of `sglang-batch run --ray` gets through, and in how much memory.

The run is the real one: journal, plan, dispatcher, windows. Its replicas repeat what they are asked at once:
by default they are stand-ins in the driver's process behind the same protocol as actors, whose work counts as
the driver's; with `--actors` they are real actors of a Ray that is started here, on whatever cores there are.
Lines have a prompt of 240 characters, the first 200 of which they share with 99 others.

Speed is given by the clock, and by processor time of the driver's process: what else the machine does changes
the first and hardly the second.

    python -m benchmark.driver_speed --lines 20000 --replicas 64
    python -m benchmark.driver_speed --lines 1000000 --replicas 64 --json benchmark/results/driver_speed.json
    python -m benchmark.driver_speed --lines 20000 --replicas 2 --actors --json FILE
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from benchmark import provenance
from benchmark.echo_batch import _peak_mib  # first: it makes SGLang's package light

from sglang.batch.records import Answer, BatchRequest, Usage
from sglang.batch.run.arguments import add_run_arguments, check_run
from sglang.batch.run.command import run
from sglang.batch.run.engine.channel import Reply, Submit
from sglang.batch.run.ray_replicas.actor import GATHER_SECONDS, Place, ReplicaActor
from sglang.batch.run.ray_replicas.arguments import RayArguments
from sglang.batch.run.ray_replicas.cluster import connected, creator
from sglang.batch.run.ray_replicas.engine import RayEngine, ReplicaLimits
from sglang.batch.run.ray_replicas.wire import Back, frames, read_requests
from sglang.batch.run.recovery import OpenJob

GROUP = 100
"""Lines that share a beginning."""


def echo(submit: Submit) -> Back:
    """Answer with the beginning of the prompt."""
    prompt = msgspec.json.decode(submit.body)["prompt"]
    choice = {"index": 0, "text": prompt[:40], "logprobs": None, "finish_reason": "stop"}
    body = {
        **{"id": submit.id, "object": "text_completion", "created": 0, "model": "echo"},
        "choices": [choice],
        "usage": {"prompt_tokens": 60, "completion_tokens": 10, "total_tokens": 70},
    }
    return Reply(submit.id, Answer(200, msgspec.json.encode(body), Usage(60, 0, 10)))


class StandIn:
    """An actor in the driver's process."""

    def __init__(self) -> None:
        self._back: list[Back] = []
        self._some = asyncio.Event()

    async def place(self) -> Place:
        return Place("here", os.getpid(), None)

    async def launch(self) -> str | None:
        return None

    def submit(self, frame: bytes) -> None:
        self._back += map(echo, read_requests(frame))
        self._some.set()

    async def take(self) -> list[bytes]:
        await self._some.wait()
        await asyncio.sleep(GATHER_SECONDS)
        back, self._back = self._back, []
        self._some.clear()
        return list(frames(back))

    async def state(self) -> list[dict[str, Any]]:
        return [{"memory_usage": {"token_capacity": 400_000}}]

    async def stop(self) -> None:
        pass

    def kill(self) -> None:
        pass


class EchoEngine:
    """In the place of a replica's supervisor."""

    async def start(self) -> None:
        pass

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        body = msgspec.json.encode(request.body)
        reply = echo(Submit(request_id, request.line, request.custom_id, request.url, body))
        assert isinstance(reply, Reply)
        return reply.answer

    async def internal_state(self) -> list[dict[str, Any]]:
        return [{"memory_usage": {"token_capacity": 400_000}}]

    async def stop(self) -> None:
        pass


class EchoReplica(ReplicaActor):
    """A real actor without an engine of SGLang's."""

    def __init__(self, flags: list[str], name: str, start: float, stall: float) -> None:
        super().__init__(flags, name, start, stall)
        self._engine = EchoEngine()  # type: ignore[assignment]


def write_lines(path: Path, count: int, seed: int) -> None:
    """Write completions in groups that begin alike, shuffled."""
    draw = random.Random(seed)
    order = list(range(count))
    draw.shuffle(order)
    with path.open("w") as file:
        for i in order:
            prompt = f"{random.Random(i // GROUP + seed).getrandbits(800):0200x}{i:040x}"
            body = {"prompt": prompt, "max_tokens": 20}
            line = {"custom_id": f"line-{i:07}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def drive(options: argparse.Namespace, rest: list[str]) -> int:
    """Be the driver: run the lines and write what that took."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_run_arguments(parser)
    arguments = check_run(parser.parse_args(rest), [])
    limits = ReplicaLimits(
        least=options.replicas, most=options.replicas, pool=arguments.pool, restarts=1, start=300.0
    )
    server_args = SimpleNamespace(
        model_path="echo", schedule_policy="blend", device="cpu", max_queued_requests=None
    )
    ray = RayArguments(None, options.replicas, options.replicas, 0.0)
    with connected(ray) if options.actors else contextlib.nullcontext():
        place = creator(EchoReplica, [], gpus=0.0, start=300.0, stall=600.0) if options.actors else None

        def make_engine(job: OpenJob) -> RayEngine:
            return RayEngine(
                place or (lambda name: StandIn()), limits, job=job.id, model="echo", plans=True, say=print
            )

        began, cpu = time.monotonic(), time.process_time()
        code = run(arguments, server_args, make_engine)
        seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    figures = {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "lines_per_second": round(options.lines / seconds),
        "lines_per_cpu_second": round(options.lines / cpu_seconds),
        "peak_mib": _peak_mib(),
    }
    options.figures.write_text(json.dumps(figures))
    return code


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.driver_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--actors", action="store_true", help="real actors of Ray instead of stand-ins")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--figures", type=Path, help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.figures is not None:
        sys.exit(drive(options, rest))
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    with tempfile.TemporaryDirectory(prefix="driver-speed-") as name:
        figures = measure(options, Path(name))
    kind = "actors" if options.actors else "stand-ins"
    report = {
        "command": f"python -m benchmark.driver_speed {' '.join(sys.argv[1:])}".strip(),
        "commit": provenance.commit(),
        "seed": options.seed,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load_average": os.getloadavg(),
        "lines": options.lines,
        "replicas": f"{options.replicas} {kind}",
        **figures,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(
        f"{options.lines:,} lines, {options.replicas} {kind}: {figures['seconds']:.1f} s,"
        f" {figures['lines_per_second']:,} lines/s, {figures['lines_per_cpu_second']:,} per second of the"
        f" driver's processor time; peak memory {figures['peak_mib']:,.0f} MiB"
    )


def measure(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run the lines in a process of their own and check that each has one record."""
    write_lines(folder / "in.jsonl", options.lines, options.seed)
    command = [sys.executable, "-m", "benchmark.driver_speed", "--figures", str(folder / "figures.json")]
    command += ["--lines", str(options.lines), "--replicas", str(options.replicas)]
    command += ["--actors"] if options.actors else []
    files = ["-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"), "--quiet"]
    subprocess.run([*command, *files], check=True)
    with (folder / "out.jsonl").open("rb") as output:
        ids = {json.loads(line)["custom_id"] for line in output}
    with (folder / "out.jsonl").open("rb") as output:
        records = sum(1 for _ in output)
    if not records == len(ids) == options.lines:
        raise SystemExit(f"{options.lines:,} lines, {records:,} records, {len(ids):,} custom_ids")
    figures: dict[str, float] = json.loads((folder / "figures.json").read_bytes())
    return figures


if __name__ == "__main__":
    # Under its own name, not `__main__`: an actor finds its class by that.
    from benchmark import driver_speed

    driver_speed.main()

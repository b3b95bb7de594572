"""`sglang-batch run` with an engine that repeats what it is asked, and notes in a file what it computes.

Flags are those of `run`, and `--echo-log FILE --echo-seconds SECONDS`; with `--echo-worker` the engine is in
a process of its own, which some lines kill, and with `--ray` there are such engines in actors.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import light_sglang  # noqa: F401  before all of SGLang
from echo import Echo
from echo_replica import EchoReplica

from sglang.batch.run.arguments import add_run_arguments, check_run
from sglang.batch.run.barrier import Barrier, NoBarrier
from sglang.batch.run.command import run
from sglang.batch.run.engine.protocol import Engine
from sglang.batch.run.engine.supervisor import Supervisor
from sglang.batch.run.ray_replicas.command import run_ray
from sglang.batch.run.recovery import OpenJob
from sglang.batch.usage import BAD_USAGE, BadUsage


class EchoHere:
    """The echo engine in this process: quick to start, and it never dies."""

    def __init__(self, log: str, seconds: float) -> None:
        self._echo = Echo(log, seconds)
        self.answer = self._echo.answer

    async def start(self) -> None:
        pass

    def barrier(self) -> Barrier:
        return NoBarrier()

    async def internal_state(self) -> list[dict[str, Any]]:
        return await self._echo.internal_state()

    async def stop(self) -> None:
        pass


def say_peak_memory() -> None:
    """Not the resource module's figure, in which the memory of whoever started this process is, too."""
    status = Path("/proc/self/status").read_text()
    print("echo: peak memory", re.findall(r"VmHWM:\s+(\d+ kB)", status)[0], file=sys.stderr)


def adjust() -> None:
    """Set constants of modules as a test wants them: `ECHO_SETTINGS` has their names and values."""
    for name, value in json.loads(os.environ.get("ECHO_SETTINGS", "{}")).items():
        module, _, constant = name.rpartition(".")
        setattr(import_module(module), constant, value)


def main() -> int:
    adjust()
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_run_arguments(parser)
    parser.add_argument("--echo-log", required=True)
    parser.add_argument("--echo-seconds", type=float, default=0.0)
    parser.add_argument("--echo-worker", action="store_true")
    parser.add_argument("--model-path", default="echo")
    parser.add_argument("--dtype")
    options = parser.parse_args()
    server_args = SimpleNamespace(
        model_path=options.model_path,
        dtype=options.dtype,
        schedule_policy="fcfs",
        device="cpu",
        tp_size=1,
        pp_size=1,
        dp_size=1,
        attn_dp_size=1,
        enable_dp_attention=False,
        max_queued_requests=None,
    )
    try:
        arguments = check_run(options, [])
        if arguments.ray is not None:
            flags = [options.echo_log, str(options.echo_seconds)]
            return run_ray(replace(arguments, server=flags), arguments.ray, server_args, actor=EchoReplica)

        def make_engine(job: OpenJob) -> Engine:
            if not options.echo_worker:
                return EchoHere(options.echo_log, options.echo_seconds)
            worker = [sys.executable, str(Path(__file__).with_name("echo_worker.py"))]
            flags = [options.echo_log, str(options.echo_seconds)]
            start, stall = arguments.start_timeout, arguments.stall_timeout
            return Supervisor(worker, flags, job=job.id, start=start, stall=stall)

        return run(arguments, server_args, make_engine)
    except BadUsage as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    finally:
        say_peak_memory()


if __name__ == "__main__":
    sys.exit(main())

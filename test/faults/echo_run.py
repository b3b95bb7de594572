"""`sglang-batch run` with an engine that repeats what it is asked, and notes in a file what it computes.

Flags are those of `run`, and `--echo-log FILE --echo-seconds SECONDS`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import random
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

# Upstream's package takes seconds to import, torch and all, and a test starts many runs without need of it.
_package = ModuleType("sglang")
_package.__path__ = importlib.util.find_spec("sglang").submodule_search_locations
sys.modules["sglang"] = _package

# ruff: noqa: E402
from sglang.batch.records import Answer, BatchRequest, Usage
from sglang.batch.run.arguments import add_run_arguments, check_run
from sglang.batch.run.barrier import Barrier, NoBarrier
from sglang.batch.run.command import run
from sglang.batch.usage import BAD_USAGE, BadUsage


class EchoEngine:
    """Answers with the prompt after a random time of up to `seconds`."""

    def __init__(self, log: str, seconds: float) -> None:
        self.loop = asyncio.new_event_loop()
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._seconds = seconds
        self._random = random.Random(1)

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        await asyncio.sleep(self._random.uniform(0, self._seconds))
        prompt = str(request.body.get("prompt"))
        os.write(self._log, f"{request.custom_id}\n".encode())
        if prompt.startswith("refuse") and "ECHO_FORGIVES" not in os.environ:
            body = {"object": "error", "message": "refused", "type": "BadRequestError", "code": 400}
            return Answer(400, json.dumps(body).encode(), code="BadRequestError", message="refused")
        if prompt.startswith("raise"):
            raise RuntimeError("cannot run this")
        choice = {"index": 0, "text": f"echo {prompt}", "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 2}
        body = {"echo": prompt, "choices": [choice], "usage": usage}
        return Answer(200, json.dumps(body).encode(), Usage(10, 4, 2))

    def install_signal_handlers(self) -> None:
        pass

    def barrier(self) -> Barrier:
        return NoBarrier()

    async def internal_state(self) -> list[dict[str, Any]]:
        return [{"memory_usage": {"token_capacity": 4000}}]

    def shutdown(self) -> None:
        self.loop.close()


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_run_arguments(parser)
    parser.add_argument("--echo-log", required=True)
    parser.add_argument("--echo-seconds", type=float, default=0.0)
    parser.add_argument("--model-path", default="echo")
    parser.add_argument("--dtype")
    options = parser.parse_args()
    server_args = SimpleNamespace(
        model_path=options.model_path,
        dtype=options.dtype,
        schedule_policy="fcfs",
        device="cpu",
        max_queued_requests=None,
    )
    try:
        arguments = check_run(options, [])
        return run(arguments, server_args, lambda _: EchoEngine(options.echo_log, options.echo_seconds))
    except BadUsage as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE


if __name__ == "__main__":
    sys.exit(main())

"""`sglang-batch serve` with the echo engine as a worker process, which some lines kill.

Flags are those of `serve`, and `--echo-log FILE --echo-seconds SECONDS`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

# As in echo_run: without upstream's imports, which take seconds.
_package = ModuleType("sglang")
_package.__path__ = importlib.util.find_spec("sglang").submodule_search_locations
sys.modules["sglang"] = _package

# ruff: noqa: E402
from sglang.batch.run.engine.supervisor import Supervisor
from sglang.batch.serve.arguments import add_serve_arguments, check_serve
from sglang.batch.serve.command import ServedEngine, serve_by
from sglang.batch.serve.store import Store
from sglang.batch.usage import BAD_USAGE, BadUsage


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_serve_arguments(parser)
    parser.add_argument("--echo-log", required=True)
    parser.add_argument("--echo-seconds", type=float, default=0.0)
    parser.add_argument("--echo-model", default="echo")
    options = parser.parse_args()

    def make_engine(store: Store) -> ServedEngine:
        worker = [sys.executable, str(Path(__file__).with_name("echo_worker.py"))]
        flags = [options.echo_log, str(options.echo_seconds)]
        engine = Supervisor(worker, flags, job=store.id, stall=options.stall_timeout)
        model = options.echo_model
        deciding = {"--model-path": model}
        return ServedEngine(engine, lambda: engine.alive, options.engine_restarts, (model,), deciding)

    try:
        return serve_by(check_serve(options, []), make_engine, asyncio.new_event_loop())
    except BadUsage as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE


if __name__ == "__main__":
    sys.exit(main())

"""`sglang-batch serve` with the echo engine as a worker process, which some lines kill.

Flags are those of `serve`, and `--echo-log FILE --echo-seconds SECONDS`; with `--endpoint` a server answers.
`--echo-cancel-seconds` is what the requests of a cancelled batch get.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import light_sglang  # noqa: F401  before all of SGLang

from sglang.batch.run.engine.supervisor import Supervisor
from sglang.batch.serve import batches
from sglang.batch.serve.arguments import add_serve_arguments, check_serve
from sglang.batch.serve.command import ServedEngine, serve, serve_by
from sglang.batch.serve.online import OwnEngine
from sglang.batch.serve.store import Store
from sglang.batch.usage import BAD_USAGE, BadUsage


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_serve_arguments(parser)
    parser.add_argument("--echo-log", required=True)
    parser.add_argument("--echo-seconds", type=float, default=0.0)
    parser.add_argument("--echo-model", default="echo")
    parser.add_argument("--echo-cancel-seconds", type=float, default=batches.CANCEL_SECONDS)
    options = parser.parse_args()
    batches.CANCEL_SECONDS = options.echo_cancel_seconds

    def make_engine(store: Store) -> ServedEngine:
        worker = [sys.executable, str(Path(__file__).with_name("echo_worker.py"))]
        flags = [options.echo_log, str(options.echo_seconds)]
        start, stall = options.start_timeout, options.stall_timeout
        engine = Supervisor(worker, flags, job=store.id, start=start, stall=stall)
        model = options.echo_model
        deciding = {"--model-path": model}
        return ServedEngine(
            engine,
            lambda: engine.alive,
            options.engine_restarts,
            (model,),
            deciding,
            online=OwnEngine(engine, first=1),
        )

    try:
        checked = check_serve(options, [])
        if checked.remote is not None:
            return serve(checked)
        return serve_by(checked, make_engine, asyncio.new_event_loop())
    except BadUsage as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE


if __name__ == "__main__":
    sys.exit(main())

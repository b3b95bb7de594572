"""Data-parallel replicas behind one barrier; prints what they did as JSON. Arguments: the server's flags."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from sglang.batch.records import BatchRequest
from sglang.batch.run.engine.in_process import InProcessSGLang
from sglang.batch.server_flags import parse_server_args, with_defaults

REQUESTS = 12
PAUSE = 2.0  # seconds in which a replica that did not hear of the barrier would have answered


async def run(engine: InProcessSGLang) -> dict[str, Any]:
    engine.install_signal_handlers()
    barrier = engine.barrier()
    await barrier.close()
    body = {"max_tokens": 2, "temperature": 0, "ignore_eos": True}
    prefix = "Classify the sentence as positive or negative. " * 4
    tasks = {
        str(i): asyncio.ensure_future(
            engine.answer(
                BatchRequest(i, str(i), "/v1/completions", {**body, "prompt": f"{prefix}{i}"}), str(i)
            )
        )
        for i in range(REQUESTS)
    }
    await barrier.settle(tasks, list(tasks))
    await asyncio.sleep(PAUSE)
    early = sum(task.done() for task in tasks.values())
    await barrier.open()
    answers = await asyncio.gather(*tasks.values())
    states = await engine.internal_state()
    return {
        "early": early,
        "answered": sum(answer.ok for answer in answers),
        "blend": [state["blend"] for state in states],
    }


def main() -> None:
    engine = InProcessSGLang(parse_server_args(with_defaults(sys.argv[1:]), usage="replicas_script"))
    try:
        print(json.dumps(engine.loop.run_until_complete(run(engine))))
    finally:
        engine.shutdown()


if __name__ == "__main__":
    main()

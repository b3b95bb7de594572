"""Data-parallel replicas behind one barrier; prints what they did as JSON. Arguments: the server's flags."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from sglang.batch.records import Answer, BatchRequest
from sglang.batch.run.engine.in_process import InProcessSGLang
from sglang.batch.server_flags import parse_server_args, with_defaults

TOPICS = tuple(f"Topic {letter}: " for letter in "ABCDEFGHIJKL")
"""Many, so that equal parts can be whole topics."""

TEXT = "Classify the sentence as positive or negative. " * 12

REQUESTS = 3
"""Of each topic."""

PAUSE = 2.0  # seconds in which a replica that did not hear of the barrier would have answered


def requests(kind: str, count: int, **fields: Any) -> list[BatchRequest]:
    """Requests whose topics take turns, as do replicas that know nothing of prefixes."""
    body = {"max_tokens": 6, "temperature": 0, "ignore_eos": True, **fields}
    return [
        BatchRequest(
            0,
            f"{kind}-{topic}-{number}",
            "/v1/completions",
            {**body, "prompt": f"{name}{TEXT}{kind} {number}"},
        )
        for number in range(count)
        for topic, name in enumerate(TOPICS)
    ]


async def run(engine: InProcessSGLang) -> dict[str, Any]:
    engine.install_signal_handlers()
    barrier = engine.barrier()
    await barrier.close()
    first = [*requests("first", REQUESTS), *requests("several", 1, n=2)]
    tasks = {
        request.custom_id: asyncio.ensure_future(engine.answer(request, request.custom_id))
        for request in first
    }
    await barrier.settle(tasks, list(tasks))
    await asyncio.sleep(PAUSE)
    early = sum(task.done() for task in tasks.values())
    await barrier.open()
    answers = dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))
    await asyncio.sleep(PAUSE)  # until the controller has heard that they have ended
    late = requests("late", 1)
    answers |= {request.custom_id: await engine.answer(request, request.custom_id) for request in late}
    states = await engine.internal_state()
    return {
        "early": early,
        "texts": {name: texts(answer) for name, answer in answers.items()},
        "late_cached": [answers[request.custom_id].usage.cached for request in late],
        "blend": [state["blend"] for state in states],
    }


def texts(answer: Answer) -> list[str]:
    assert answer.ok, answer.message
    return [choice["text"] for choice in json.loads(answer.body)["choices"]]


def main() -> None:
    engine = InProcessSGLang(parse_server_args(with_defaults(sys.argv[1:]), usage="replicas_script"))
    try:
        print(json.dumps(engine.loop.run_until_complete(run(engine))))
    finally:
        engine.shutdown()


if __name__ == "__main__":
    main()

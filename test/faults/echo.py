"""An engine that repeats what it is asked, and notes in a file what it computes. Some prompts are worse:

"refuse": a status of 400, unless ECHO_FORGIVES is set; "raise": an exception; "kill": the process dies before
the answer; "hang": no answer, and none to anybody else any more; "wait": no answer before there is a file
with the log's name and .go behind it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sglang.batch.checks import Limits, Refused, check_body, check_fields
from sglang.batch.records import Answer, BatchRequest, Usage


class Echo:
    """Checks values as a real one, and answers with the prompt after a random time of up to `seconds`."""

    def __init__(self, log: str, seconds: float) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._go = Path(f"{log}.go")
        self._seconds = seconds
        self._random = random.Random(1)
        self.running = 0

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        self.running += 1
        try:
            return await self._answer(request)
        finally:
            self.running -= 1

    async def _answer(self, request: BatchRequest) -> Answer:
        await asyncio.sleep(self._random.uniform(0, self._seconds))
        prompt = str(request.body.get("prompt"))
        if prompt.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        while prompt.startswith("wait") and not self._go.exists():
            await asyncio.sleep(0.02)
        if prompt.startswith("hang"):
            time.sleep(3600)
        os.write(self._log, f"{request.custom_id}\n".encode())
        try:
            check_body(request.body)
            check_fields(request.body, Limits())
        except Refused as error:
            return _refusal(str(error))
        if prompt.startswith("refuse") and "ECHO_FORGIVES" not in os.environ:
            return _refusal("refused")
        if prompt.startswith("raise"):
            raise RuntimeError("cannot run this")
        choice = {"index": 0, "text": f"echo {prompt}", "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 2}
        body = {"echo": prompt, "choices": [choice], "usage": usage}
        return Answer(200, json.dumps(body).encode(), Usage(10, 4, 2, 1))

    async def stream(
        self, request: BatchRequest, request_id: str, part: Callable[[bytes], Awaitable[None]]
    ) -> Answer:
        """Answer word by word, then with the tokens."""
        answer = await self.answer(request, request_id)
        if not answer.ok:
            return answer
        body = json.loads(answer.body)
        for word in body["choices"][0]["text"].split():
            choice = {"index": 0, "text": word, "delta": {"content": word}, "finish_reason": None}
            await part(_event({"choices": [choice]}))
            await asyncio.sleep(self._random.uniform(0, self._seconds))
        await part(_event({"choices": [], "usage": body["usage"]}))
        await part(b"data: [DONE]\n\n")
        return Answer(200, b"")

    async def internal_state(self) -> list[dict[str, Any]]:
        return [{"memory_usage": {"token_capacity": 4000}}]


def _event(body: dict[str, Any]) -> bytes:
    return (
        b"data: "
        + json.dumps({"id": "e", "object": "e", "created": 1, "model": "echo", **body}).encode()
        + b"\n\n"
    )


def _refusal(message: str) -> Answer:
    body = {"object": "error", "message": message, "type": "BadRequestError", "code": 400}
    return Answer(400, json.dumps(body).encode(), code="BadRequestError", message=message)

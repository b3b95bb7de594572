"""What the service tells its operator: lines for people, or a JSON object per line with one for each request.

Neither prompts nor answers, nor keys, are told; of a request, its route and not its path.
"""

from __future__ import annotations

import json
import re
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglang.batch.run.command import say

FORMATS = ("text", "json")

REQUEST_ID = "x-request-id"
"""Header of each reply: the id of its request."""

_OF_BATCH = re.compile(r"(batch_[0-9a-f]{32}): (.*)", re.DOTALL)


def sayer(style: str) -> Callable[[str], object]:
    """Make what tells the operator something, in one of FORMATS."""
    return say if style == "text" else _say_json


def _say_json(text: str) -> None:
    batch = _OF_BATCH.fullmatch(text)
    _write({"message": text} if batch is None else {"batch": batch[1], "message": batch[2]})


def _write(fields: dict[str, Any]) -> None:
    now = time.time()
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03}Z"
    print(json.dumps({"time": stamp, **fields}), file=sys.stderr, flush=True)


class Requests:
    """Middleware that gives each request an id, and tells of its end.

    Args:
        style: one of FORMATS; as text, requests are not told of.
    """

    def __init__(self, app: ASGIApp, style: str) -> None:
        self._app = app
        self._style = style

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        id, began, status = f"req_{uuid.uuid4().hex}", time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = id
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            if self._style == "json":
                route = getattr(scope.get("route"), "path", None)
                seconds = round(time.perf_counter() - began, 4)
                told = {"request": id, "method": scope["method"], "route": route}
                _write({"message": "request", **told, "status": status, "seconds": seconds})

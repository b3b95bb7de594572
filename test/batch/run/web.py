"""Servers on the loopback that behave as a test wants, each in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

Respond = Callable[["WebServer", dict[str, Any]], Awaitable[web.StreamResponse | None]]


class WebServer:
    """A server with OpenAI's API that echoes prompts, unless `respond` replies or raises `Drop`.

    Attributes:
        seen: prompts in the order in which they came; answered: those that were answered.
        most_running: requests at a time, at most.
        request, headers: the last request, and its headers.
    """

    def __init__(
        self,
        respond: Respond | None,
        *,
        model: str | None = "m",
        policy: str | None = None,
        priorities: bool = False,
    ) -> None:
        self.respond = respond
        self.model, self.policy, self.priorities = model, policy, priorities
        self.seen: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.answered: list[str] = []
        self.running = self.most_running = 0
        self.request: web.Request
        self.headers: dict[str, str] = {}
        self.port = 0
        self.gate = threading.Event()
        self.gate.set()
        self._started = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._started.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(30)

    def stop(self) -> None:
        """Close the socket and every connection."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(30)
            self._thread = None

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/get_server_info", self._info)
        app.router.add_post("/{path:.*}", self._post)
        runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.port = listener.getsockname()[1]
        await web.SockSite(runner, listener).start()
        self._started.set()
        await self._end.wait()
        listener.close()
        assert runner.server is not None
        for connection in list(runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()

    async def _models(self, request: web.Request) -> web.Response:
        if self.model is None:
            raise web.HTTPNotFound
        return web.json_response({"data": [{"id": self.model}]})

    async def _info(self, request: web.Request) -> web.Response:
        if self.policy is None:
            raise web.HTTPNotFound
        state = {"memory_usage": {"token_capacity": 5000}}
        flags = {"schedule_policy": self.policy, "enable_priority_scheduling": self.priorities}
        return web.json_response({**flags, "internal_states": [state]})

    async def _post(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.request = request
        self.headers = dict(request.headers)
        self.bodies.append(body)
        self.seen.append(body["prompt"])
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            while not self.gate.is_set():
                await asyncio.sleep(0.005)
            response = await self.respond(self, body) if self.respond is not None else None
        except Drop:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        finally:
            self.running -= 1
        if response is None:
            response = self.echo(body)
        if response.status == 200:
            self.answered.append(body["prompt"])
        return response

    @staticmethod
    def echo(body: dict[str, Any]) -> web.Response:
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
        choices = [{"index": 0, "text": body["prompt"], "finish_reason": "stop"}]
        return web.json_response({"choices": choices, "usage": usage, "model": body.get("model")})


class Drop(Exception):
    """Close the connection without a reply."""


def error(status: int, message: str = "not now", **headers: str) -> web.Response:
    body = {"error": {"message": message, "type": "some_error", "param": None, "code": status}}
    return web.Response(
        status=status, text=json.dumps(body), content_type="application/json", headers=headers
    )


@contextmanager
def serving(*servers: WebServer) -> Iterator[None]:
    try:
        for server in servers:
            server.start()
        yield
    finally:
        for server in servers:
            server.stop()

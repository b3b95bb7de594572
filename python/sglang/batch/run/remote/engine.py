"""Servers as the engine of a job."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from sglang.batch.records import Answer, BatchRequest
from sglang.batch.run.remote.arguments import DEFAULT_CONCURRENCY, RemoteArguments
from sglang.batch.run.remote.client import Client
from sglang.batch.run.remote.dispatched import DispatchedEngine, model_cost
from sglang.batch.run.remote.prompt import load_tokenizer
from sglang.batch.run.remote.transport import ServerInfo, Trouble, Unreachable
from sglang.batch.run.remote.window import Window
from sglang.batch.usage import BadUsage

SPARE_FILES = 256
"""Open files that are not connections."""

PORTS = 25_000
"""Connections to one server at most: a system has some 28,000 ports for them."""


class ServersUnavailable(Exception):
    """No server answers; the message says which was asked and why."""


class RemoteEngine(DispatchedEngine):
    """The servers of a run.

    Args:
        arguments: the user's.
        pool: requests in flight at most.
        say: tells the user something.

    Attributes:
        loop: the event loop of the connections.
        model: the model of requests that name none; None if no server said so.

    Raises:
        ServersUnavailable: no server answers.
        BadUsage: servers have different models and it is not said which is meant; no tokenizer is found.
    """

    def __init__(
        self, arguments: RemoteArguments, *, pool: int, say: Callable[[str], object] = lambda text: None
    ) -> None:
        super().__init__(
            load_tokenizer(arguments.tokenizer),
            model_cost(arguments.tokenizer),
            retries=arguments.retries,
            timeout=arguments.timeout,
            patience=arguments.patience,
            window_for=self._window,
            accepts=self._has_our_model,
            say=say,
        )
        self._arguments = arguments
        self._pool = pool
        self._files = _raise_file_limit() - SPARE_FILES
        self.loop = asyncio.new_event_loop()
        try:
            self.loop.run_until_complete(self._open())
        except BaseException:
            self.shutdown()
            raise

    async def pass_on(self, request: BatchRequest, part: Callable[[bytes], object] | None) -> Answer:
        """Run one request at once, beside all that waits here, on the server that has the least to do.

        A server that knows priorities lets it go first. Nothing is tried twice, apart from servers that are
        gone.

        Args:
            part: takes the reply's server-sent events, if it comes as such.
        """
        answer = Answer(0, b"{}", code="connection_error", message="no server can be reached")
        living = [server for server in self._dispatcher.servers if server.alive]
        for server in sorted(living, key=lambda server: server.outstanding / server.weight):
            first = request
            if server.first is not None:
                first = replace(request, body={**request.body, "priority": server.first})
            reply = await cast(Client, server.client).send(first, self.model, None, part)
            answer = reply.answer
            if reply.trouble is not Trouble.GONE:
                break
        return answer

    async def start(self) -> None:
        """Do nothing: the servers have been asked already."""

    async def stop(self) -> None:
        """Do nothing: the servers go on."""

    def shutdown(self) -> None:
        """Close every connection. Safe to call more than once."""
        if not self.loop.is_closed():
            self.loop.run_until_complete(self._close())
            self.loop.close()

    async def _open(self) -> None:
        self._clients = [
            Client(endpoint.url, self._arguments.headers) for endpoint in self._arguments.endpoints
        ]
        found = await asyncio.gather(*(client.info() for client in self._clients), return_exceptions=True)
        infos = [info for info in found if isinstance(info, ServerInfo)]
        troubles = [error for error in found if isinstance(error, BaseException)]
        for error in troubles:
            if not isinstance(error, Unreachable):
                raise error
        if not infos:
            raise ServersUnavailable(f"no server answers: {'; '.join(str(error) for error in troubles)}")
        for error in troubles:
            self._say(f"a server does not answer, and is tried again: {error}")
        self.model = self._arguments.model or _common_model(infos)
        self._begin(
            [
                (client, endpoint.weight, info if isinstance(info, ServerInfo) else None)
                for client, endpoint, info in zip(
                    self._clients, self._arguments.endpoints, found, strict=True
                )
            ]
        )

    def _window(self, info: ServerInfo) -> Window:
        possible = max(min(self._pool, PORTS, self._files // len(self._arguments.endpoints)), 1)
        wanted = self._arguments.concurrency or (possible if info.plans else DEFAULT_CONCURRENCY)
        return (Window.whole if info.plans else Window.adapting)(min(wanted, possible))

    def _has_our_model(self, info: ServerInfo) -> bool:
        return self._arguments.model is not None or not info.models or info.models[0] == self.model

    async def _close(self) -> None:
        if hasattr(self, "_dispatcher"):
            await self._dispatcher.close()
        for client in getattr(self, "_clients", ()):
            await client.close()


def _common_model(infos: list[ServerInfo]) -> str | None:
    """Find the model that servers have in common, each one's own; None if they do not say."""
    names = list(dict.fromkeys(info.models[0] for info in infos if info.models))
    if len(names) > 1:
        raise BadUsage(
            f"--endpoint: the servers have different models ({', '.join(names)}); say with --model which one"
            " requests mean that name none"
        )
    return names[0] if names else None


def _raise_file_limit() -> int:
    """Let this process open as many files as it may; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, 1 << 20)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

"""Servers as the engine of a job."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sglang.batch.records import Answer, BatchRequest
from sglang.batch.run.barrier import Barrier, NoBarrier
from sglang.batch.run.remote.arguments import DEFAULT_CONCURRENCY, RemoteArguments
from sglang.batch.run.remote.client import Client, ServerInfo, Trouble, Unreachable
from sglang.batch.run.remote.dispatcher import Dispatcher, Server, backoff
from sglang.batch.run.remote.prompt import load_tokenizer, read_prompt
from sglang.batch.run.remote.queue import PlannedQueue, Ticket
from sglang.batch.run.remote.window import Window
from sglang.batch.usage import BadUsage
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.kv_capacity import kv_capacity
from sglang.srt.blend.core.cost.model_shape import ModelShape

LLAMA_3_8B = ModelShape(
    gemm_params=7.5e9, weight_bytes=15e9, layers=32, attention_width=4096, kv_bytes=4096, head_params=0.53e9
)
"""What servers are taken to run where no config.json says more: it weighs requests against each other."""

GPU, MEMORY = "a100-80gb", 0.88
"""What they are taken to run on, and the share of its memory that they use."""

SPARE_FILES = 256
"""Open files that are not connections."""

PORTS = 25_000
"""Connections to one server at most: a system has some 28,000 ports for them."""


class ServersUnavailable(Exception):
    """No server answers; the message says which was asked and why."""


class RemoteEngine:
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
        self._arguments = arguments
        self._pool = pool
        self._say = say
        self._tokenize = load_tokenizer(arguments.tokenizer)
        self._cost = _cost(arguments.tokenizer)
        self._files = _raise_file_limit() - SPARE_FILES
        self.loop = asyncio.new_event_loop()
        try:
            self.loop.run_until_complete(self._open())
        except BaseException:
            self.shutdown()
            raise

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run one request to its end, on whichever server and with as many attempts as it takes.

        Raises:
            EngineDied: there has been no server for too long.
        """
        ticket = Ticket(read_prompt(request.url, request.body, self._tokenize))
        try:
            while True:
                server = await self._dispatcher.turn(ticket)
                epoch = server.window.epoch
                timeout = None if server.plans else self._arguments.timeout
                reply = await server.client.send(request, self.model, timeout)
                self._dispatcher.returned(server, ticket, epoch, reply)
                if reply.trouble is Trouble.GONE:
                    continue  # the request has reached nobody
                ticket.attempts += 1
                if reply.trouble is None or ticket.attempts > self._arguments.retries:
                    return reply.answer
                if reply.trouble is Trouble.FAILED:
                    await asyncio.sleep(backoff(ticket.attempts))
        finally:
            self._dispatcher.forget(ticket)

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
            reply = await server.client.send(first, self.model, None, part)
            answer = reply.answer
            if reply.trouble is not Trouble.GONE:
                break
        return answer

    async def start(self) -> None:
        """Do nothing: the servers have been asked already."""

    def barrier(self) -> Barrier:
        """Make a barrier; one server that plans by itself does not need it."""
        servers = self._dispatcher.servers
        return NoBarrier() if len(servers) == 1 and servers[0].plans else DispatchBarrier(self._dispatcher)

    async def internal_state(self) -> list[dict[str, Any]]:
        """Ask the first server that plans by itself for its schedulers' states; an empty one without any."""
        for server in self._dispatcher.servers:
            if server.plans and server.alive:
                with contextlib.suppress(Unreachable):
                    return list((await server.client.info()).states) or [{}]
        return [{}]

    async def stop(self) -> None:
        """Do nothing: the servers go on."""

    def shutdown(self) -> None:
        """Close every connection. Safe to call more than once."""
        if not self.loop.is_closed():
            self.loop.run_until_complete(self._close())
            self.loop.close()

    def describe(self) -> str:
        """Say what answers, for people."""
        policies = {"blend by the server" if s.plans else "planned here" for s in self._dispatcher.servers}
        return ", ".join(sorted(policies))

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
        self._dispatcher = Dispatcher(
            [
                self._server(client, endpoint.weight, info if isinstance(info, ServerInfo) else None)
                for client, endpoint, info in zip(
                    self._clients, self._arguments.endpoints, found, strict=True
                )
            ],
            self._cost,
            patience=self._arguments.patience,
            window_for=self._window,
            accepts=self._has_our_model,
            say=self._say,
        )

    def _server(self, client: Client, weight: int, info: ServerInfo | None) -> Server:
        known = info or ServerInfo()
        capacity = known.kv_capacity or kv_capacity(self._cost.shape, self._cost.hardware, MEMORY)
        return Server(
            client=client,
            weight=weight,
            plans=known.plans,
            window=self._window(known),
            queue=PlannedQueue(self._cost, capacity),
            alive=info is not None,
            first=known.first,
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


class DispatchBarrier:
    """Holds a dispatcher until the first pool is complete, so that the first plan sees it."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def close(self) -> None:
        """Hold everything from now on."""
        self._dispatcher.hold()

    async def settle(self, in_flight: Container[str], request_ids: Iterable[str]) -> None:
        """Let requests that have just been submitted get as far as their queue: one turn of the loop."""
        await asyncio.sleep(0)

    async def open(self) -> None:
        """Plan and send."""
        self._dispatcher.release()


def _common_model(infos: list[ServerInfo]) -> str | None:
    """Find the model that servers have in common, each one's own; None if they do not say."""
    names = list(dict.fromkeys(info.models[0] for info in infos if info.models))
    if len(names) > 1:
        raise BadUsage(
            f"--endpoint: the servers have different models ({', '.join(names)}); say with --model which one"
            " requests mean that name none"
        )
    return names[0] if names else None


def _cost(tokenizer: str | None) -> CostModel:
    """Model the servers by the config.json beside the tokenizer, or by what is common."""
    shape = LLAMA_3_8B
    if tokenizer is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            shape = ModelShape.from_config(json.loads((Path(tokenizer) / "config.json").read_text()))
    return CostModel(shape, load_hardware(GPU))


def _raise_file_limit() -> int:
    """Let this process open as many files as it may; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, 1 << 20)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

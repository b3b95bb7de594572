"""A dispatcher and those it hands requests to, as the engine of a job."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from sglang.batch.records import Answer, BatchRequest
from sglang.batch.run.barrier import Barrier, NoBarrier
from sglang.batch.run.remote.dispatcher import Dispatcher, Server, backoff
from sglang.batch.run.remote.prompt import Tokenize, read_prompt
from sglang.batch.run.remote.queue import PlannedQueue, Ticket
from sglang.batch.run.remote.transport import ServerInfo, Transport, Trouble, Unreachable
from sglang.batch.run.remote.window import Window
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


class DispatchedEngine:
    """Servers of some kind, which answer the requests of a job.

    Args:
        tokenize: of prompts, for the order of requests.
        cost: of the model.
        retries: times that a request is sent again.
        timeout: seconds that one attempt may take; servers that plan by themselves may take longer.
        patience: seconds without any server after which every request ends with `EngineDied`.
        window_for: makes the window of a server by what that says about itself.
        accepts: whether a server that has come back may go on.
        say: tells the user something.

    Attributes:
        model: the model of requests that name none; None where servers have one only.
    """

    def __init__(
        self,
        tokenize: Tokenize,
        cost: CostModel,
        *,
        retries: int,
        timeout: float,
        patience: float,
        window_for: Callable[[ServerInfo], Window],
        accepts: Callable[[ServerInfo], bool] = lambda info: True,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.model: str | None = None
        self._tokenize = tokenize
        self._cost = cost
        self._retries = retries
        self._timeout = timeout
        self._patience = patience
        self._window_for = window_for
        self._accepts = accepts
        self._say = say
        self._dispatcher: Dispatcher

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
                timeout = None if server.plans else self._timeout
                reply = await server.client.send(request, self.model, timeout)
                self._dispatcher.returned(server, ticket, epoch, reply)
                if reply.trouble is Trouble.GONE:
                    continue  # the request has reached nobody
                ticket.attempts += 1
                if reply.trouble is None or ticket.attempts > self._retries:
                    return reply.answer
                if reply.trouble is Trouble.FAILED:
                    await asyncio.sleep(backoff(ticket.attempts))
        finally:
            self._dispatcher.forget(ticket)

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

    def describe(self) -> str:
        """Say what answers, for people."""
        policies = {"blend by the server" if s.plans else "planned here" for s in self._dispatcher.servers}
        return ", ".join(sorted(policies))

    def _begin(self, transports: Sequence[tuple[Transport, int, ServerInfo | None]]) -> None:
        """Begin to hand out requests.

        Args:
            transports: with the weight of each, and what it has said; None where nobody answers yet.
        """
        self._dispatcher = Dispatcher(
            [self._server(*one) for one in transports],
            self._cost,
            patience=self._patience,
            window_for=self._window_for,
            accepts=self._accepts,
            say=self._say,
        )

    def _server(self, transport: Transport, weight: int, info: ServerInfo | None) -> Server:
        known = info or ServerInfo()
        capacity = known.kv_capacity or kv_capacity(self._cost.shape, self._cost.hardware, MEMORY)
        return Server(
            client=transport,
            weight=known.weight or weight,
            plans=known.plans,
            window=self._window_for(known),
            queue=PlannedQueue(self._cost, capacity),
            alive=info is not None,
            first=known.first,
        )


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


def model_cost(folder: str | None) -> CostModel:
    """Model servers by the config.json in a folder, a model's or a tokenizer's, or by what is common."""
    shape = LLAMA_3_8B
    if folder is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            shape = ModelShape.from_config(json.loads((Path(folder) / "config.json").read_text()))
    return CostModel(shape, load_hardware(GPU))

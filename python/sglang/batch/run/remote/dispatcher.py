"""Which request goes to which server, and when.

What arrives is dealt among the servers that live, as a pool is among data-parallel replicas: equal work by
weight, common prefixes kept together. Each server has its part in the planner's order and gets as much of it
at a time as its window says. A server that has nothing left takes whole subtrees from the one that ends
last, by the speeds measured so far. What a server holds or would get when it dies is dealt among the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sglang.batch.run.engine.protocol import EngineDied
from sglang.batch.run.remote.queue import PlannedQueue, Ticket
from sglang.batch.run.remote.transport import Reply, ServerInfo, Transport, Trouble, Unreachable
from sglang.batch.run.remote.window import Window
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.order.sharding import shard
from sglang.srt.blend.core.pool.output_length import prior_tokens

Ints = NDArray[np.int64]

BATCH = 64
"""Later arrivals are dealt together, when they are 1 / BATCH of what is in flight."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before something is tried again: doubled from the first to the longest, then jittered."""

LONGEST_PROBE = 15.0
"""Seconds between two looks at a server that is gone, at most."""

LONGEST_RETRY_AFTER = 600.0
"""Seconds that a server may ask to be left alone for."""

SILENT = 60.0
"""Seconds without any answer after which a server that should answer is asked whether it lives."""

ANSWERS = 32
"""Answers after which the measured speed of a server counts as much as its weight."""

VAIN = 0.9
"""A server that could take nothing asks again when so little of what waited is left, or when more waits."""

TINY = 1e-3
"""The least speed, as a share of an average server's."""

STRIKES = 3
"""Questions without an answer until it counts as gone."""


def backoff(attempt: int, longest: float | None = None) -> float:
    """Seconds to wait after an attempt, counted from 1: in the upper half of a time that doubles."""
    wait = min(FIRST_WAIT * 2.0 ** min(attempt - 1, 30), LONGEST_WAIT if longest is None else longest)
    return wait * random.uniform(0.5, 1.0)


@dataclass(eq=False)
class Server:
    """A server and what it has to do.

    Attributes:
        plans: it wants to see everything that waits, and orders it by itself.
        outstanding: requests that it holds.
        work: modelled seconds of what it holds and of what waits for it.
        alive: whether it gets requests.
        paused: ends the time in which it gets none; None when it may get some.
        resume: time of the loop's clock at which `paused` ends it.
        refused: refusals in a row.
        heard: time of the loop's clock at which it replied last.
        told: whether the user knows that it does not see everything.
        first: `priority` of requests that go before all others there; None if it knows no priorities.
        in_vain: requests that waited at another server when nothing of them was worth taking; 0 if none.
        done: modelled seconds of what it has answered.
        answers: requests that it has answered.
        lost: set while it is not alive.
    """

    client: Transport
    weight: int
    plans: bool
    window: Window
    queue: PlannedQueue
    outstanding: int = 0
    work: float = 0.0
    alive: bool = True
    paused: asyncio.Handle | None = field(default=None, repr=False)
    resume: float = 0.0
    refused: int = 0
    heard: float = 0.0
    told: bool = False
    first: int | None = None
    in_vain: int = 0
    done: float = 0.0
    answers: int = 0
    _busy: float = 0.0
    _since: float | None = None
    lost: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    watching: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def full(self) -> bool:
        """Whether it has as many requests as its window allows."""
        return self.outstanding >= self.window.limit

    def sent(self, now: float) -> None:
        """It gets one more request."""
        if not self.outstanding:
            self._since = now
        self.outstanding += 1

    def ended(self, now: float) -> None:
        """It has one request less, answered or not."""
        self.outstanding -= 1
        if not self.outstanding:
            self._busy, self._since = self.busy(now), None

    def busy(self, now: float) -> float:
        """Seconds in which it had something to do."""
        return self._busy + (now - self._since if self._since is not None else 0.0)


def speeds_of(servers: Iterable[Server], now: float) -> dict[Server, float]:
    """Modelled seconds that each gets done in a second: by weight at first, by what it has answered later.

    Until any has answered, a server of weight 1 does one.
    """
    busy = {server: server.busy(now) for server in servers}
    done = sum(server.done for server in busy)
    expected = sum(server.weight * seconds for server, seconds in busy.items())
    one = done / expected if done and expected else 1.0
    speeds = {}
    for server, seconds in busy.items():
        trust = server.answers / (server.answers + ANSWERS) if seconds else 0.0
        measured = server.done / seconds if seconds else 0.0
        speeds[server] = max((1.0 - trust) * server.weight * one + trust * measured, TINY * one)
    return speeds


def _parts(
    cost: CostModel, tickets: list[Ticket], lengths: Ints, output: Ints, parts: int
) -> list[list[Ticket]]:
    """Cut arrivals into parts of equal work, the largest first."""
    if parts == 1:
        return [tickets]
    shards = shard(
        np.concatenate([ticket.prompt.tokens for ticket in tickets]),
        np.concatenate([[0], np.cumsum(lengths)]),
        output,
        cost,
        parts,
    )
    ordered = sorted(shards.parts, key=lambda part: -part.work)
    return [[tickets[i] for i in part.requests.tolist()] for part in ordered if len(part.requests)]


class Dispatcher:
    """Hands requests to servers; made and used in one event loop.

    Args:
        cost: of the model, to compare requests with one another.
        patience: seconds without a server after which every request ends with `EngineDied`.
        window_for: makes a server's window when it turns out to be of another kind.
        accepts: whether a server that has come back may go on, by what it says about itself.
        say: tells the user which servers go and come.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        cost: CostModel,
        *,
        patience: float,
        window_for: Callable[[ServerInfo], Window],
        accepts: Callable[[ServerInfo], bool] = lambda info: True,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.servers = tuple(servers)
        self._cost = cost
        self._patience = patience
        self._window_for = window_for
        self._accepts = accepts
        self._say = say
        self._inbox: dict[Ticket, None] = {}
        self._held = False
        self._pumping = False
        self._died: str | None = None
        self._loop = asyncio.get_running_loop()
        self._alone: asyncio.TimerHandle | None = None
        for server in self.servers:
            server.heard = self._loop.time()
            server.watching = self._loop.create_task(self._watch(server))
        self._count_living()

    # ---------------------------------------------------------------- requests

    def hold(self) -> None:
        """Send nothing from now on, so that the first plan sees everything."""
        self._held = True

    def release(self) -> None:
        """Send again."""
        self._held = False
        self._wake()

    async def turn(self, ticket: Ticket) -> Server:
        """Wait until a request may be sent, and where; follow it with `returned`, or `forget`.

        Raises:
            EngineDied: there has been no server for too long.
        """
        if self._died is not None:
            raise EngineDied(self._died, suspects=frozenset())
        if ticket.turn.done():
            ticket.turn = self._loop.create_future()
        if ticket.queue is None:
            self._inbox[ticket] = None
        else:
            ticket.queue.add_again(ticket)
        self._wake()
        return cast(Server, await ticket.turn)

    def returned(self, server: Server, ticket: Ticket, epoch: int, reply: Reply) -> None:
        """A server has replied to a request, or failed to.

        Args:
            epoch: of the server's window when the request was sent.
        """
        now = self._loop.time()
        full = server.full
        server.ended(now)
        ticket.sent = False
        self._wake()
        if reply.trouble is Trouble.GONE:
            self._leave(server, ticket)
            self._lose(server, str(reply.answer.message))
            return
        server.heard = now
        if reply.trouble is None:
            usage = reply.answer.usage
            server.refused = 0
            server.window.answered(usage.prompt + usage.completion, now=now, full=full)
            server.answers, server.done = server.answers + 1, server.done + ticket.work
            if reply.answer.ok:
                server.queue.finished(ticket, usage.completion // reply.choices)
            self._leave(server, ticket)
        elif reply.trouble is Trouble.OVERLOADED and server.alive:
            if server.window.refused(epoch):
                server.refused += 1
            wait = (
                backoff(max(server.refused, 1))
                if reply.wait is None
                else min(reply.wait, LONGEST_RETRY_AFTER)
            )
            self._pause(server, now + wait)
        else:
            self._leave(server, ticket)

    def forget(self, ticket: Ticket) -> None:
        """A request was given up, whether it has been sent or not."""
        self._inbox.pop(ticket, None)
        for server in self.servers:
            if ticket.queue is server.queue:
                if ticket.sent:
                    server.ended(self._loop.time())
                self._leave(server, ticket)
        ticket.sent = False
        self._wake()

    async def close(self) -> None:
        """Stop looking after servers."""
        if self._alone is not None:
            self._alone.cancel()
        for server in self.servers:
            if server.paused is not None:
                server.paused.cancel()
            if server.watching is not None:
                server.watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await server.watching

    # ---------------------------------------------------------------- who gets what

    def _wake(self) -> None:
        """Hand out what can be, once the present callback is done."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if self._held:
            return
        self._deal()
        ready = [server for server in self.servers if server.alive and server.paused is None]
        for server in ready:
            self._send(server)
        for server in ready:
            while not server.full and not (server.plans and server.outstanding) and self._help(server):
                self._send(server)

    def _pause(self, server: Server, until: float) -> None:
        """A server gets nothing before this time of the loop's clock, or the later one that was said before.

        The timer decides when that is over, not the clock: uvloop's timers may be half a millisecond early.
        """
        if server.paused is not None:
            if server.resume >= until:
                return
            server.paused.cancel()
        server.resume = until
        server.paused = self._loop.call_at(until, self._go_on, server)

    def _go_on(self, server: Server) -> None:
        server.paused = None
        self._wake()

    def _send(self, server: Server) -> None:
        # What fits in whole goes without a plan to one that makes its own: a plan takes milliseconds.
        planned = not server.plans or len(server.queue) > server.window.limit - server.outstanding
        while not server.full and len(server.queue):
            ticket = server.queue.pop() if planned else server.queue.pop_unplanned()
            if not ticket.turn.done():  # cancelled: about to leave
                server.sent(self._loop.time())
                ticket.sent = True
                ticket.turn.set_result(server)
        if server.plans and len(server.queue) and not server.told:
            server.told = True
            self._say(
                f"{server.client.url} plans {server.window.limit:,} requests at a time, not all that wait"
            )

    def _deal(self) -> None:
        """Give arrivals to servers; a few wait for more to come, so that they can be kept together."""
        living = [server for server in self.servers if server.alive]
        if not living or not self._inbox:
            return
        in_flight = len(self._inbox) + sum(s.outstanding + len(s.queue) for s in self.servers)
        # One that plans by itself always has room: it need not have the last arrivals at once.
        idle = any(not (s.plans or s.full or len(s.queue) or s.paused) for s in living)
        if len(living) > 1 and not idle and len(self._inbox) * BATCH < in_flight:
            return
        tickets = list(self._inbox)
        self._inbox.clear()
        lengths = np.array([len(ticket.prompt.tokens) for ticket in tickets])
        known = np.array([ticket.prompt.known or 0 for ticket in tickets], np.int64)
        prior = prior_tokens([ticket.prompt.max_new for ticket in tickets])
        output = np.where(known > 0, known, prior)
        seconds = self._cost.comp(lengths, output) + self._cost.mem(lengths, output)
        for ticket, work in zip(tickets, seconds.tolist(), strict=True):
            ticket.work = work
        weights = [server.weight for server in living]
        parts = sum(weights) // math.gcd(*weights) if len(living) > 1 else 1
        speeds = speeds_of(self.servers, self._loop.time())
        for part in _parts(self._cost, tickets, lengths, output, min(parts, len(tickets))):
            self._give(min(living, key=lambda server: server.work / speeds[server]), part)

    def _help(self, idle: Server) -> bool:
        """Let a server that has nothing to do take over from the one that ends last; whether it did."""
        others = [s for s in self.servers if s is not idle and len(s.queue)]
        if not others:
            return False
        speeds = speeds_of(self.servers, self._loop.time())
        busy = max(others, key=lambda server: server.work / speeds[server])
        if busy.paused:
            tickets = busy.queue.take_back()
        elif idle.in_vain * VAIN < len(busy.queue) <= idle.in_vain:
            return False  # nothing paid a moment ago
        else:
            tickets = busy.queue.stolen(idle.queue, speed=speeds[busy], thief_speed=speeds[idle])
        busy.work -= sum(ticket.work for ticket in tickets)
        idle.in_vain = 0 if tickets else len(busy.queue)
        self._give(idle, tickets)
        return bool(tickets)

    def _give(self, server: Server, tickets: Iterable[Ticket]) -> None:
        server.queue.add(tickets)
        server.work += sum(ticket.work for ticket in tickets)

    def _leave(self, server: Server, ticket: Ticket) -> None:
        if ticket.queue is server.queue:
            server.queue.remove(ticket)
            server.work -= ticket.work

    # ---------------------------------------------------------------- who lives

    def _lose(self, server: Server, why: str) -> None:
        """A server gets nothing until it is back."""
        if not server.alive:
            return
        server.alive = False
        server.lost.set()
        tickets = server.queue.take_back()
        server.work -= sum(ticket.work for ticket in tickets)
        self._inbox.update(dict.fromkeys(tickets))
        self._say(f"lost a server, which is tried again: {why}")
        self._count_living()

    def _find(self, server: Server, info: ServerInfo) -> None:
        server.alive, server.first = True, info.first
        server.lost.clear()
        if server.plans != info.plans:
            server.plans, server.window = info.plans, self._window_for(info)
        server.weight = info.weight or server.weight
        if server.paused is not None:
            server.paused.cancel()
        server.paused, server.refused, server.heard = None, 0, self._loop.time()
        self._say(f"a server is back: {server.client.url}")
        self._count_living()
        self._wake()

    def _count_living(self) -> None:
        """Begin to lose patience when nobody lives, and stop when somebody does."""
        if any(server.alive for server in self.servers):
            if self._alone is not None:
                self._alone.cancel()
                self._alone = None
        elif self._alone is None:
            why = f"no server could be reached for {self._patience:g} s"
            self._alone = self._loop.call_later(self._patience, self.give_up, why)

    def give_up(self, why: str) -> None:
        """End every request that waits, and all to come, with `EngineDied`."""
        self._died = why
        for ticket in self._inbox:
            if not ticket.turn.done():
                ticket.turn.set_exception(EngineDied(why, suspects=frozenset()))
        self._inbox.clear()

    async def _watch(self, server: Server) -> None:
        """Look after a server that is gone, or from which nothing is heard."""
        strikes = attempt = 0
        while True:
            if server.alive:
                attempt = 0
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SILENT / 4):  # `wait_for` may swallow what cancels it
                        await server.lost.wait()
            if not server.alive:
                attempt += 1
                await asyncio.sleep(backoff(attempt, LONGEST_PROBE))
            if server.alive and not (server.outstanding and self._loop.time() - server.heard > SILENT):
                strikes = 0
                continue
            try:
                info = await server.client.info()
            except Unreachable as error:
                strikes += 1
                if server.alive and strikes >= STRIKES:
                    self._lose(server, str(error))
                    await server.client.reset()
            else:
                strikes = 0
                if not server.alive and self._accepts(info):
                    self._find(server, info)

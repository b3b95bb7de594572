"""The driver's end of a replica: an actor, and after its death another one somewhere else."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, Protocol

from sglang.batch.records import BatchRequest, RequestFailed
from sglang.batch.run.engine.channel import Raised, Submit, encode_json
from sglang.batch.run.engine.channel import Reply as Answered
from sglang.batch.run.engine.restarts import Restarts
from sglang.batch.run.engine.suspects import CRASHED
from sglang.batch.run.ray_replicas.actor import Place
from sglang.batch.run.ray_replicas.wire import Back, Lost, frames, read_back
from sglang.batch.run.remote.transport import (
    PROBE_SECONDS,
    Reply,
    ServerInfo,
    Trouble,
    Unreachable,
    broken,
    count,
    kv_tokens,
)

SILENT_SECONDS, STRIKES = 20.0, 3
"""Seconds without a beat of an actor, so many times in a row, after which it counts as hung."""

PLACED_SECONDS = 60.0
"""Seconds without a place after which the user is told."""


class ActorGone(Exception):
    """An actor is dead, or cannot be reached; the message says why."""


class Actor(Protocol):
    """A handle of a `ReplicaActor`; every method but `submit` and `kill` raises `ActorGone`."""

    async def place(self) -> Place:
        """Wait until it is placed; where it is then."""

    async def launch(self) -> str | None:
        """Start its engine; says why if that fails."""

    def submit(self, frame: bytes) -> None:
        """Hand requests over; if that fails, `take` says so."""

    async def take(self) -> list[bytes]:
        """Wait for answers, or a beat."""

    async def state(self) -> list[dict[str, Any]]:
        """Ask every data-parallel rank's scheduler for its state."""

    async def stop(self) -> None:
        """Stop its engine in order."""

    def kill(self) -> None:
        """End it, now, if it is not dead already."""


class Replica:
    """A replica, for a dispatcher; made and used in one event loop.

    Args:
        name: what the user knows it by.
        create: asks for an actor, which need not be placed yet.
        plans: its engine plans by itself.
        restarts: counts its deaths.
        start: seconds that an engine has to start.
        weigh: weighs it by the name of its GPU, None without one.
        say: tells the user something.

    Attributes:
        url: its name.
        placed: where its actor is, or the last one was; None before the first is placed.
        hopeless: why it is not started again; None as long as it may be.
    """

    def __init__(
        self,
        name: str,
        create: Callable[[], Actor],
        *,
        plans: bool,
        restarts: Restarts,
        start: float,
        weigh: Callable[[str | None], int],
        say: Callable[[str], object],
    ) -> None:
        self.url = name
        self.placed: Place | None = None
        self.hopeless: str | None = None
        self._create = create
        self._plans = plans
        self._restarts = restarts
        self._start = start
        self._weigh = weigh
        self._say = say
        self._actor: Actor | None = None
        self._starting = asyncio.Lock()
        self._listening: asyncio.Task[None] | None = None
        self._ids = itertools.count()
        self._waiting: dict[str, asyncio.Future[Back | str]] = {}
        self._out: list[Submit] = []
        self._answered = 0

    @property
    def up(self) -> bool:
        """Whether it has an engine."""
        return self._actor is not None

    async def info(self) -> ServerInfo:
        """Ask for its state; without an engine, start one first, which takes as long as it takes.

        Raises:
            Unreachable: there is none, or it does not answer.
        """
        async with self._starting:
            actor, patience = self._actor, PROBE_SECONDS
            if actor is None:
                # It was started for minutes; on a busy machine its first word may take a while, too.
                actor, patience = await self._begin(), max(PROBE_SECONDS, self._start)
        try:
            async with asyncio.timeout(patience):
                states = tuple(await actor.state())
        except (ActorGone, TimeoutError) as error:
            raise Unreachable(f"{self.url}: {str(error) or 'does not answer'}") from error
        assert self.placed is not None
        return ServerInfo(
            plans=self._plans,
            kv_capacity=kv_tokens(states),
            states=states,
            weight=self._weigh(self.placed.device),
        )

    async def send(self, request: BatchRequest, model: str | None, timeout: float | None) -> Reply:
        """Run one attempt of a request; the engine says itself when it hangs, so no time is set.

        Raises:
            RequestFailed: its handler raised.
        """
        if self._actor is None:
            return broken("connection_error", f"{self.url}: is gone", Trouble.GONE)
        loop = asyncio.get_running_loop()
        name = f"{next(self._ids):x}"
        answer: asyncio.Future[Back | str] = loop.create_future()
        self._waiting[name] = answer
        if not self._out:
            loop.call_soon(self._flush)
        self._out.append(
            Submit(name, request.line, request.custom_id, request.url, encode_json(request.body))
        )
        try:
            back = await answer
        finally:
            self._waiting.pop(name, None)
        if isinstance(back, Answered):
            return Reply(back.answer, choices=max(count(request.body.get("n")), 1))
        if isinstance(back, Raised):
            raise RequestFailed(back.error)
        if isinstance(back, Lost) and back.suspect:
            return broken(CRASHED, f"it ran alone, and {back.why}")
        why = back.why if isinstance(back, Lost) else back
        return broken("connection_error", f"{self.url}: {why}", Trouble.GONE)

    def pardon(self) -> None:
        """Let the deaths so far be no reason to give it up: the next ones are expected."""
        self._answered += 1

    async def reset(self) -> None:
        """Give the actor up; `info` asks for another one."""
        self._end("does not answer")

    async def close(self) -> None:
        """Stop the engine in order if there is time, then end the actor."""
        actor, self._actor = self._actor, None
        if self._listening is not None:
            self._listening.cancel()
        if actor is not None:
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    await actor.stop()
            except (ActorGone, TimeoutError):
                pass
            actor.kill()

    async def _begin(self) -> Actor:
        """Ask for an actor, wait until it is placed, and start its engine."""
        if self.hopeless is not None:
            raise Unreachable(f"{self.url}: {self.hopeless}")
        actor = self._create()
        loop = asyncio.get_running_loop()
        told = loop.call_later(
            PLACED_SECONDS,
            self._say,
            f"{self.url} has no place yet (no resources, or a slow machine); the run goes on without it",
        )
        try:
            self.placed = await actor.place()
            told.cancel()
            self._say(f"{self.url} starts its engine on {self.placed.node}")
            try:
                async with asyncio.timeout(self._start + PROBE_SECONDS):
                    why = await actor.launch()
            except TimeoutError:
                why = f"the engine did not start within {self._start:g} s"
            if why is not None:
                raise ActorGone(why)
        except ActorGone as error:
            actor.kill()
            self._count_death(str(error))
            raise Unreachable(f"{self.url}: {error}") from error
        except BaseException:
            actor.kill()
            raise
        finally:
            told.cancel()
        self._actor = actor
        self._listening = loop.create_task(self._listen(actor))
        return actor

    async def _listen(self, actor: Actor) -> None:
        """Take answers until the actor is dead, hangs, or its engine died."""
        while True:
            beat = asyncio.ensure_future(actor.take())
            beat.add_done_callback(lambda done: done.cancelled() or done.exception())  # heard of, if too late
            try:
                # Several short waits: what counts is time in which this event loop had leisure to listen.
                for _ in range(STRIKES):
                    if not beat.done():
                        await asyncio.wait({beat}, timeout=SILENT_SECONDS)
                if not beat.done():
                    return self._end(f"nothing was heard of it for {STRIKES * SILENT_SECONDS:g} s")
                received = [message for frame in beat.result() for message in read_back(frame)]
            except ActorGone as gone:
                return self._end(str(gone))
            finally:
                beat.cancel()
            lost = None
            for message in received:
                answer = self._waiting.get(message.id)
                if answer is not None and not answer.done():
                    answer.set_result(message)
                if isinstance(message, Lost):
                    lost = message.why
                else:
                    self._answered += 1
            if lost is not None:
                return self._end(lost)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._actor is not None:
            for frame in frames(out):
                self._actor.submit(frame)

    def _end(self, why: str) -> None:
        """The actor is of no use any more; everybody who waits for it hears so."""
        actor, self._actor = self._actor, None
        if actor is None:
            return
        actor.kill()
        self._count_death(why)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(why)

    def _count_death(self, why: str) -> None:
        if self._restarts.died(self._answered) is None:
            self.hopeless = why
            self._say(f"{self.url} is given up: {why}")

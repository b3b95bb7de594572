"""SGLang in a process group of its own: started, asked, watched, and killed as one.

The runner survives whatever happens to it. A worker that ends, or an engine that gets nowhere for too long,
is a death: the whole group is killed, its leftovers are cleared, and everybody who waits for an answer hears
of it. Whether to start again is for the caller to decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from typing import Any

import msgspec

from sglang.batch.records import Answer, BatchRequest, RequestFailed
from sglang.batch.run.barrier import Barrier
from sglang.batch.run.engine import flight_recorder, leftovers
from sglang.batch.run.engine.channel import (
    Call,
    Channel,
    GiveUp,
    Launch,
    Launched,
    Message,
    Method,
    NotLaunched,
    Part,
    Raised,
    Reply,
    Result,
    Submit,
    encode_json,
)
from sglang.batch.run.engine.protocol import EngineDied, EngineFailed
from sglang.batch.run.engine.worker import PROCESS_DIED
from sglang.batch.run.give_way import give_way

STOP_SECONDS = 10.0
"""Seconds that an engine gets to stop by itself before it is killed."""

LONGEST_LOOK = 5.0
"""Seconds between two looks at an engine's progress at most."""


class Supervisor:
    """An engine in processes of its own.

    Args:
        worker: command that starts a worker, to which two file descriptors are added.
        flags: the server's.
        job: id of the job, by which leftovers are known.
        start: seconds that an engine has to start.
        stall: seconds without any progress after which an engine with requests counts as dead.
    """

    def __init__(
        self, worker: Sequence[str], flags: Sequence[str], *, job: str, start: float, stall: float
    ) -> None:
        self._worker = worker
        self._flags = list(flags)
        self._job = job
        self._start = start
        self._stall = stall
        self._life: _Life | None = None

    @property
    def alive(self) -> bool:
        """Whether it was started, and nobody has noticed its death."""
        return self._life is not None and self._life.alive

    async def start(self) -> None:
        """Start the engine, after whatever is left of an earlier one has been cleared.

        Raises:
            EngineFailed: it did not start.
        """
        await self.stop()
        self._life = _Life(self._worker, self._job)
        try:
            await self._life.launch(self._flags, start=self._start, stall=self._stall)
        except BaseException:
            await self.stop()
            raise

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run one request to its end.

        Raises:
            RequestFailed: its handler raised.
            EngineDied: the engine is gone.
        """
        reply = await self._living().ask(_submit(request, request_id), waiting=True)
        assert isinstance(reply, Reply)
        return reply.answer

    async def stream(self, request: BatchRequest, request_id: str, part: Callable[[bytes], object]) -> Answer:
        """Run one request to its end, as `answer` does, and hand out its reply as it comes.

        Args:
            part: takes server-sent events; never called for a request that is refused.

        Returns:
            Status and, of a refusal, the body.
        """
        reply = await self._living().ask(_submit(request, request_id, stream=True), waiting=True, part=part)
        assert isinstance(reply, Reply)
        return reply.answer

    def barrier(self) -> Barrier:
        """Make a barrier.

        Raises:
            LookupError: this SGLang lacks what the barrier needs.
        """
        life = self._living()
        if life.no_barrier is not None:
            raise LookupError(life.no_barrier)
        return _RemoteBarrier(life.call)

    async def internal_state(self) -> list[dict[str, Any]]:
        """Ask every data-parallel rank's scheduler for its state.

        Raises:
            EngineDied: the engine is gone.
        """
        states: list[dict[str, Any]] = await self._living().call("state")
        return states

    async def stop(self) -> None:
        """Stop every process of the engine and clear what it leaves behind."""
        life, self._life = self._life, None
        if life is not None:
            await life.end()
        await asyncio.to_thread(leftovers.clear, self._job)

    def _living(self) -> _Life:
        if self._life is None:
            raise EngineDied("the engine is not running")
        return self._life


class _Life:
    """One engine from its start to its end."""

    def __init__(self, worker: Sequence[str], job: str) -> None:
        self.no_barrier: str | None = None
        self._job = job
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._requests: set[str] = set()
        self._parts: dict[str, Callable[[bytes], object]] = {}
        self._given_up: set[asyncio.Task[None]] = set()
        self._death: EngineDied | None = None
        self._killed = False
        self._tasks: list[asyncio.Task[None]] = []
        ours, theirs = socket.socketpair()
        end, self._lifeline = os.pipe()
        environment = leftovers.engine_environment(job)
        environment[flight_recorder.VARIABLE] = str(flight_recorder.folder(job))
        self._process = subprocess.Popen(
            [*worker, str(theirs.fileno()), str(end)],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(theirs.fileno(), end),
        )
        theirs.close()
        os.close(end)
        self._socket = ours

    @property
    def alive(self) -> bool:
        return self._death is None

    async def launch(self, flags: list[str], *, start: float, stall: float) -> None:
        self._channel = await Channel.on(self._socket)
        try:
            await self._channel.send(Launch(flags))
            message = await asyncio.wait_for(self._channel.receive(), start)
        except TimeoutError:
            raise EngineFailed(
                f"the engine did not start within {start:g} s; --start-timeout gives it longer"
            ) from None
        except ConnectionError:
            message = None
        if isinstance(message, NotLaunched):
            raise EngineFailed(message.reason)
        if not isinstance(message, Launched):
            raise EngineFailed(f"the engine did not start: {await self._how_it_ended()}")
        self.no_barrier = message.no_barrier
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._watch(stall))]

    async def ask(
        self,
        message: Submit | Call,
        *,
        waiting: bool = False,
        part: Callable[[bytes], object] | None = None,
    ) -> Message:
        """Send a message and wait for what answers it.

        Args:
            waiting: whether the engine is expected to get ahead meanwhile.
            part: takes the parts that come before the answer.
        """
        if self._death is not None:
            raise self._death
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[message.id] = answer
        if waiting:
            self._requests.add(message.id)
        if part is not None:
            self._parts[message.id] = part
        try:
            with contextlib.suppress(ConnectionError):  # `_listen` will notice, and say more about it
                await self._channel.send(message)
            reply = await answer
        except asyncio.CancelledError:
            if waiting:
                self._give_up(message.id)
            raise
        finally:
            self._waiting.pop(message.id, None)
            self._requests.discard(message.id)
            self._parts.pop(message.id, None)
        if isinstance(reply, Raised):
            raise RequestFailed(reply.error)
        return reply

    def _give_up(self, id: str) -> None:
        """Let the engine drop a request for which nobody waits any more."""

        async def send() -> None:
            with contextlib.suppress(ConnectionError):
                await self._channel.send(GiveUp(id))

        task = asyncio.ensure_future(send())
        self._given_up.add(task)
        task.add_done_callback(self._given_up.discard)

    async def call(self, method: Method) -> Any:
        result = await self.ask(Call(uuid.uuid4().hex, method))
        assert isinstance(result, Result)
        return msgspec.json.decode(result.value)

    async def end(self) -> None:
        """Let the worker stop, or kill it; then kill whoever is left of its group."""
        for task in self._tasks:
            task.cancel()
        self._socket_closed()
        await self._exited(STOP_SECONDS if self._death is None and self._tasks else 0.0)
        await self._kill()
        os.close(self._lifeline)
        self._fail(EngineDied("the engine was stopped"))

    def _socket_closed(self) -> None:
        if hasattr(self, "_channel"):
            self._channel.close()
        else:
            self._socket.close()

    async def _listen(self) -> None:
        received = 0
        while (message := await self._channel.receive()) is not None:
            received += 1
            await give_way(received)
            if isinstance(message, Part):
                if (part := self._parts.get(message.id)) is not None:
                    part(message.data)
            elif isinstance(message, Reply | Raised | Result):
                answer = self._waiting.get(message.id)
                if answer is not None and not answer.done():
                    answer.set_result(message)
        how = await self._how_it_ended()
        await self._kill()
        self._fail(EngineDied(how, self._suspects()))

    async def _watch(self, stall: float) -> None:
        """End the engine if it has requests and nothing of them gets ahead for too long."""
        seen: object = None
        since = time.monotonic()
        look = min(stall / 10, LONGEST_LOOK)
        while True:
            await asyncio.sleep(look)
            try:
                now = await asyncio.wait_for(self.call("progress"), stall)
            except TimeoutError:
                break
            except EngineDied:
                return
            if now != seen or not self._requests:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since >= stall:
                break
        suspects = self._suspects()
        self._death = EngineDied(f"the engine got nowhere for {stall:g} s", suspects)
        await self._kill()
        self._fail(self._death)

    def _suspects(self) -> frozenset[str] | None:
        return flight_recorder.read(flight_recorder.folder(self._job))

    def _fail(self, death: EngineDied) -> None:
        """Let everybody know who waits, or will ask."""
        self._death = self._death or death
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(self._death)

    async def _how_it_ended(self) -> str:
        """Say how the worker ended; it has closed its end of the channel."""
        code = await self._exited(STOP_SECONDS)
        if code is None:
            return "the engine hung up"
        if code == PROCESS_DIED:
            return "a process of the engine died (its log is above)"
        return f"the engine ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"

    async def _exited(self, seconds: float) -> int | None:
        until = time.monotonic() + seconds
        while (code := self._process.poll()) is None and time.monotonic() < until:
            await asyncio.sleep(0.02)
        return code

    async def _kill(self) -> None:
        if not self._killed:  # later the number may be another group's
            self._killed = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # The group has the worker's number, also when only children of the worker are left in it.
                os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)


def _submit(request: BatchRequest, request_id: str, *, stream: bool = False) -> Submit:
    body = encode_json(request.body)
    return Submit(request_id, request.line, request.custom_id, request.url, body, stream)


class _RemoteBarrier:
    """The worker's barrier."""

    def __init__(self, call: Callable[[Method], Awaitable[Any]]) -> None:
        self._call = call

    async def close(self) -> None:
        await self._call("close")

    async def settle(self, in_flight: Container[str], request_ids: Iterable[str]) -> None:
        # What was submitted before is in the worker's hands before it hears of this.
        await self._call("settle")

    async def open(self) -> None:
        await self._call("open")

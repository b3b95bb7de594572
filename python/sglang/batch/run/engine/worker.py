"""The first process of an engine: SGLang and its request handlers, told by the runner what to do.

It leads a session of its own, so a terminal's signals do not reach it, and its whole process group ends with
the runner: a thread waits on a pipe of which the runner holds the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from sglang.batch.records import Answer, BatchRequest
from sglang.batch.run.barrier import Barrier, NoBarrier
from sglang.batch.run.engine.channel import (
    Call,
    Channel,
    GiveUp,
    Launch,
    Launched,
    Method,
    NotLaunched,
    Part,
    Raised,
    Reply,
    Result,
    Submit,
    encode_json,
    receive_now,
    send_now,
)
from sglang.batch.run.engine.protocol import EngineFailed
from sglang.batch.run.engine.signals import IGNORED

PROCESS_DIED = 131
"""Exit code of a worker one of whose children has died."""


OOM_SCORE = "500"
"""How much rather than others the kernel ends an engine's processes when memory runs out (0: no rather)."""


class WorkerEngine(Protocol):
    """The engine of a worker.

    Attributes:
        loop: the event loop that it belongs to.
    """

    loop: asyncio.AbstractEventLoop

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run one request to its end; what this raises becomes its error record."""

    async def stream(
        self, request: BatchRequest, request_id: str, part: Callable[[bytes], Awaitable[None]]
    ) -> Answer:
        """Run one request to its end and hand out the reply in parts; the rest, if any, is in the answer."""

    def abort(self, request_id: str) -> bool:
        """Drop a request; returns whether it had come as far as the engine."""

    def install_signal_handlers(self) -> None:
        """Install what the engine brings along; the worker's own come after."""

    def barrier(self) -> Barrier:
        """Make a barrier; AttributeError and ImportError name what is missing for one."""

    async def internal_state(self) -> list[dict[str, Any]]:
        """Ask every scheduler for its state."""

    def progress(self) -> list[float]:
        """Return numbers that change whenever a request gets ahead."""

    def shutdown(self) -> None:
        """Stop every process of the engine; what is still running is dropped."""


def serve(start: Callable[[list[str]], WorkerEngine], argv: list[str]) -> None:
    """Be a worker until the runner hangs up.

    Args:
        start: starts an engine with flags of the server; EngineFailed if it cannot.
        argv: file descriptors of the channel's socket and of the pipe that ends with the runner.
    """
    channel, lifeline = (int(number) for number in argv)
    for number in (channel, lifeline):
        os.set_inheritable(number, False)
    threading.Thread(target=_end_with_runner, args=(lifeline,), daemon=True).start()
    with contextlib.suppress(OSError):
        # Where memory runs out, the engine goes and not the run, which starts it again.
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=channel) as connected:
        _serve(start, connected)


def _end_with_runner(lifeline: int) -> None:
    """Kill this process group when the runner is gone: nothing is ever written into the pipe."""
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)


def _serve(start: Callable[[list[str]], WorkerEngine], connected: socket.socket) -> None:
    launch = receive_now(connected)
    if not isinstance(launch, Launch):
        return
    try:
        engine = start(launch.flags)
    except EngineFailed as error:
        send_now(connected, NotLaunched(str(error)))
        return
    try:
        engine.loop.run_until_complete(_Worker(engine).run(connected))
    finally:
        engine.shutdown()


class _Worker:
    """Passes requests to an engine and its answers back."""

    def __init__(self, engine: WorkerEngine) -> None:
        self._engine = engine
        self._barrier: Barrier = NoBarrier()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._replies = 0

    async def run(self, connected: socket.socket) -> None:
        """Do what the runner says, until it hangs up."""
        self._channel = await Channel.on(connected)
        self._engine.install_signal_handlers()
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(signal.SIGQUIT)
        # Upstream sends this when a child dies; upstream's own handler would write out all prompts.
        signal.signal(signal.SIGQUIT, lambda number, frame: os._exit(PROCESS_DIED))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        await self._channel.send(Launched(self._make_barrier()))
        while (message := await self._channel.receive()) is not None:
            if isinstance(message, Submit):
                self._running[message.id] = loop.create_task(self._answer(message))
            elif isinstance(message, GiveUp):
                running = self._running.get(message.id)
                if running is not None and not self._engine.abort(message.id):
                    running.cancel()
            elif isinstance(message, Call):
                call = loop.create_task(self._call(message))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)

    def _make_barrier(self) -> str | None:
        try:
            self._barrier = self._engine.barrier()
        except (AttributeError, ImportError) as error:
            return str(error)
        return None

    async def _answer(self, submit: Submit) -> None:
        message: Reply | Raised
        try:
            body = msgspec.json.decode(submit.body)
            request = BatchRequest(submit.line, submit.custom_id, submit.url, body)
            message = Reply(submit.id, await self._run(request, submit))
        except Exception as error:
            message = Raised(submit.id, f"{type(error).__name__}: {error}")
        finally:
            self._running.pop(submit.id, None)
        self._replies += 1
        await self._channel.send(message)

    async def _run(self, request: BatchRequest, submit: Submit) -> Answer:
        if not submit.stream:
            return await self._engine.answer(request, submit.id)

        async def part(data: bytes) -> None:
            await self._channel.send(Part(submit.id, data))

        return await self._engine.stream(request, submit.id, part)

    async def _call(self, call: Call) -> None:
        message: Result | Raised
        try:
            message = Result(call.id, encode_json(await self._do(call.method)))
        except Exception as error:
            message = Raised(call.id, f"{call.method}: {type(error).__name__}: {error}")
        await self._channel.send(message)

    async def _do(self, method: Method) -> Any:
        if method == "close":
            return await self._barrier.close()
        if method == "settle":
            return await self._barrier.settle(self._running, tuple(self._running))
        if method == "open":
            return await self._barrier.open()
        if method == "state":
            return await self._engine.internal_state()
        return [*self._engine.progress(), self._replies]


def _start(flags: list[str]) -> WorkerEngine:
    from sglang.batch.run.engine.in_process import InProcessSGLang
    from sglang.batch.server_flags import parse_server_args

    return InProcessSGLang(parse_server_args(flags, usage="sglang-batch run"))


if __name__ == "__main__":
    serve(_start, sys.argv[1:])

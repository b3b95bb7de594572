"""One replica where Ray has placed it: a supervisor with its engine, asked through calls of an actor.

The engine is in processes of its own, as in a run without Ray, and ends with the actor's process, however
that ends. Nothing here imports Ray or SGLang's engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import Any, ClassVar

import msgspec

from sglang.batch.records import BatchRequest, RequestFailed
from sglang.batch.run.engine.channel import Raised, Reply, Submit
from sglang.batch.run.engine.protocol import EngineDied, EngineFailed
from sglang.batch.run.engine.supervisor import Supervisor
from sglang.batch.run.ray_replicas.wire import Back, Lost, frames, read_requests
from sglang.batch.run.tune import find_device

BEAT_SECONDS = 5.0
"""Seconds after which an actor without an answer says that it lives."""

GATHER_SECONDS = 0.05
"""Seconds that an answer waits for others to go with it."""


class Place(msgspec.Struct):
    """Where an actor is.

    Attributes:
        node: name of the machine.
        process: id of the actor's process there.
        device: name of its GPU; None without one.
    """

    node: str
    process: int
    device: str | None


class ReplicaActor:
    """An engine in an actor; its public methods are what the driver calls.

    Args:
        flags: the server's.
        name: of the replica, unique on its machine: leftovers of its last engine there are known by it.
        start: seconds that an engine has to start.
        stall: seconds without any progress after which an engine with requests counts as dead.
    """

    WORKER: ClassVar[tuple[str, ...]] = ("-m", "sglang.batch.run.engine.worker")
    """Arguments of Python that start an engine's worker."""

    def __init__(self, flags: list[str], name: str, start: float, stall: float) -> None:
        self._engine = Supervisor([sys.executable, *self.WORKER], flags, job=name, start=start, stall=stall)
        self._back: list[Back] = []
        self._some = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    async def place(self) -> Place:
        """Say where it is."""
        device = await asyncio.to_thread(find_device)
        return Place(socket.gethostname(), os.getpid(), None if device is None else device.name)

    async def launch(self) -> str | None:
        """Start the engine; says why if that fails."""
        try:
            await self._engine.start()
        except (EngineFailed, OSError) as error:
            return str(error)
        return None

    async def submit(self, frame: bytes) -> None:
        """Begin with requests; `take` gives their answers."""
        for submit in read_requests(frame):
            task = asyncio.get_running_loop().create_task(self._answer(submit))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def take(self) -> list[bytes]:
        """Wait for answers, but no longer than for a beat; frames of what there is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEAT_SECONDS):
                await self._some.wait()
        if self._back:
            await asyncio.sleep(GATHER_SECONDS)
        back, self._back = self._back, []
        self._some.clear()
        return list(frames(back))

    async def state(self) -> list[dict[str, Any]]:
        """Ask every data-parallel rank's scheduler for its state; nothing if the engine is gone."""
        with contextlib.suppress(EngineDied, RequestFailed):
            return await self._engine.internal_state()
        return []

    async def stop(self) -> None:
        """Stop the engine and clear what it leaves."""
        await self._engine.stop()

    async def _answer(self, submit: Submit) -> None:
        request = BatchRequest(submit.line, submit.custom_id, submit.url, msgspec.json.decode(submit.body))
        message: Back
        try:
            message = Reply(submit.id, await self._engine.answer(request, submit.id))
        except EngineDied as died:
            # Nobody knows what it died of if it left no recording: then it may have been any.
            suspect = died.suspects is None or submit.id in died.suspects
            message = Lost(submit.id, str(died), suspect)
        except Exception as error:
            words = str(error) if isinstance(error, RequestFailed) else f"{type(error).__name__}: {error}"
            message = Raised(submit.id, words)
        self._back.append(message)
        self._some.set()

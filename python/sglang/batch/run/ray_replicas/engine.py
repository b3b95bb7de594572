"""All replicas as the engine of a job."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from sglang.batch.records import Answer, BatchRequest
from sglang.batch.run.barrier import Barrier
from sglang.batch.run.engine.protocol import EngineDied, EngineFailed
from sglang.batch.run.engine.restarts import Restarts
from sglang.batch.run.engine.suspects import CRASHED, in_halves
from sglang.batch.run.ray_replicas.arguments import WINDOW
from sglang.batch.run.ray_replicas.replica import Actor, Replica
from sglang.batch.run.remote.dispatched import DispatchBarrier, DispatchedEngine, model_cost
from sglang.batch.run.remote.prompt import four_bytes
from sglang.batch.run.remote.transport import ServerInfo, Trouble, Unreachable
from sglang.batch.run.remote.window import Window
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape

CRASHES = 2
"""Deaths of engines that were working on a request until it is set aside."""

FIRST_SECONDS = 60.0
"""Seconds that the others get to start, from when the first replica is there."""

WEIGHT = 8
"""Weight of a replica on an A100, or on a GPU that is not known."""

TYPICAL = (1000, 250)
"""Tokens of the request, in and out, by which kinds of GPUs are compared."""


@dataclass(frozen=True, slots=True)
class ReplicaLimits:
    """How replicas are run.

    Attributes:
        least: replicas that are waited for, for a while.
        most: replicas that are asked for.
        pool: requests in flight at most, over all of them.
        restarts: deaths of a replica in a row, without an answer between, that are put up with.
        start: seconds that an engine has to start.
    """

    least: int
    most: int
    pool: int
    restarts: int
    start: float


@dataclass(eq=False)
class _Suspect:
    """A request that engines may have died of, and what becomes of it."""

    request: BatchRequest
    verdict: asyncio.Future[Answer] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class RayEngine(DispatchedEngine):
    """Replicas that each hold an engine.

    Args:
        create: asks for the actor of a replica, by a name that is unique in the cluster.
        job: id of the job.
        model: folder with the model's config.json, or anything else.
        plans: the engines plan by themselves.
    """

    def __init__(
        self,
        create: Callable[[str], Actor],
        limits: ReplicaLimits,
        *,
        job: str,
        model: str,
        plans: bool,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        super().__init__(
            four_bytes,
            model_cost(model),
            retries=CRASHES - 1,
            timeout=0.0,  # no transport here takes one
            patience=limits.start,
            window_for=lambda info: Window.whole(min(limits.pool, WINDOW)),
            say=say,
        )
        self._create = create
        self._limits = limits
        self._job = job
        self._plans = plans
        self._replicas: list[Replica] = []
        self._joining: dict[Replica, asyncio.Task[ServerInfo]] = {}
        self._open = 0
        self._aside: list[_Suspect] = []
        self._trying: asyncio.Task[None] | None = None

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run one request to its end, on whichever replica.

        Engines may die of a request. One that two died with waits until no other is open, and is run apart.

        Raises:
            EngineDied: there has been no replica for too long.
            RequestFailed: its handler raised.
        """
        self._open += 1
        try:
            answer = await super().answer(request, request_id)
            if answer.code != CRASHED:
                return answer
            suspect = _Suspect(request)
            self._aside.append(suspect)
        finally:
            self._open -= 1
            self._try_aside()
        return await suspect.verdict

    def barrier(self) -> Barrier:
        """Make a barrier: the first plan is made here, over more than a replica has at a time."""
        return DispatchBarrier(self._dispatcher)

    async def start(self) -> None:
        """Ask for replicas and wait for some.

        Raises:
            EngineFailed: none has started.
        """
        loop = asyncio.get_running_loop()
        self._replicas = [self._replica(number) for number in range(1, self._limits.most + 1)]
        self._joining = {replica: loop.create_task(replica.info()) for replica in self._replicas}
        await self._gather()
        infos = {
            replica: task.result()
            for replica, task in self._joining.items()
            if task.done() and task.exception() is None
        }
        if not infos:
            raise EngineFailed(self._why_none())
        if len(infos) < self._limits.most:
            self._say(
                f"{len(infos)} of {self._limits.most} replicas have started; others join when they have"
            )
        self._begin([(replica, WEIGHT, infos.get(replica)) for replica in self._replicas])

    async def stop(self) -> None:
        """Stop every engine and end every actor."""
        if hasattr(self, "_dispatcher"):
            await self._dispatcher.close()
        tasks = [*self._joining.values(), *([self._trying] if self._trying else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self._replicas))
        self._replicas, self._joining = [], {}

    def _try_aside(self) -> None:
        """Run what is set aside, if nothing else is open."""
        if self._aside and not self._open and self._trying is None:
            self._trying = asyncio.create_task(self._run_aside())

    async def _run_aside(self) -> None:
        suspects, self._aside = self._aside, []
        self._say(f"{len(suspects):,} lines that engines may have died of run by themselves now")
        self._dispatcher.hold()
        try:
            await in_halves(suspects, self._run_together)
        except Exception as error:
            for suspect in suspects:
                if not suspect.verdict.done():
                    suspect.verdict.set_exception(error)
        finally:
            self._dispatcher.release()
            self._trying = None
            self._try_aside()

    async def _run_together(self, group: list[_Suspect]) -> list[_Suspect]:
        """Run suspects on one replica; returns those without an answer."""
        replica = await self._any_replica()
        replies = await asyncio.gather(
            *(replica.send(suspect.request, None, None) for suspect in group), return_exceptions=True
        )
        left = []
        for suspect, reply in zip(group, replies, strict=True):
            if isinstance(reply, BaseException):
                suspect.verdict.set_exception(reply)
            elif reply.trouble is None or (len(group) == 1 and reply.trouble is Trouble.FAILED):
                suspect.verdict.set_result(reply.answer)
            else:
                left.append(suspect)
        return left

    async def _any_replica(self) -> Replica:
        """Find a replica with an engine, or start one anew.

        Raises:
            EngineDied: none can be started.
        """
        why = "every replica was started too often"
        for replica in sorted(self._replicas, key=lambda replica: not replica.up):
            replica.pardon()
            try:
                await replica.info()
            except Unreachable as error:
                why = str(error)
            else:
                return replica
        raise EngineDied(why, suspects=frozenset())

    def _replica(self, number: int) -> Replica:
        name = f"{self._job}-r{number}"
        return Replica(
            f"replica {number}",
            lambda: self._create(name),
            plans=self._plans,
            restarts=Restarts(self._limits.restarts),
            start=self._limits.start,
            weigh=lambda device: weight_of(device, self._cost.shape),
            say=self._say_of_replica,
        )

    async def _gather(self) -> None:
        """Wait for the first replica, then a while for as many as are wanted and for those being started."""
        waiting = set(self._joining.values())
        until: float | None = None
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.start
        while waiting:
            left = (end if until is None else until) - loop.time()
            done, waiting = await asyncio.wait(
                waiting, timeout=max(left, 0.0), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                return
            up = sum(1 for task in self._joining.values() if task.done() and task.exception() is None)
            if up and until is None:
                until = loop.time() + FIRST_SECONDS
            starting = any(r.placed is not None and t in waiting for r, t in self._joining.items())
            if up >= self._limits.least and not starting:
                return

    def _why_none(self) -> str:
        for task in self._joining.values():
            if task.done() and (error := task.exception()) is not None:
                if isinstance(error, Unreachable):
                    return f"no replica has started: {error}"
                raise error
        return f"no replica has got its resources and started within {self._limits.start:g} s"

    def _say_of_replica(self, text: str) -> None:
        self._say(text)
        hopeless = [replica.hopeless for replica in self._replicas]
        if all(hopeless) and hasattr(self, "_dispatcher"):
            self._dispatcher.give_up(f"every replica was started too often: {hopeless[-1]}")


def weight_of(device: str | None, shape: ModelShape) -> int:
    """Weigh a GPU by the time that a typical request takes on it, as modelled.

    >>> from sglang.batch.run.remote.dispatched import LLAMA_3_8B
    >>> [weight_of(name, LLAMA_3_8B) for name in ("NVIDIA A100-SXM4-80GB", "NVIDIA L4", None)]
    [8, 3, 8]
    """
    with contextlib.suppress(ValueError):
        if device is not None:
            seconds, standard = (
                max(float(model.comp(*TYPICAL)), float(model.mem(*TYPICAL)))
                for model in (CostModel(shape, load_hardware(name)) for name in (device, "a100-80gb"))
            )
            return max(round(WEIGHT * standard / seconds), 1)
    return WEIGHT

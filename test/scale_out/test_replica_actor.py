"""What an actor does, without Ray: its methods are called here; its engine is in a process of its own."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

from sglang.batch.run.engine.channel import Raised, Reply, Submit
from sglang.batch.run.ray_replicas import wire
from sglang.batch.run.ray_replicas.actor import ReplicaActor

ECHO = Path(__file__).parents[1] / "faults" / "echo_worker.py"


class EchoActor(ReplicaActor):
    WORKER: ClassVar[tuple[str, ...]] = (str(ECHO),)


@asynccontextmanager
async def started(log: Path) -> AsyncIterator[EchoActor]:
    actor = EchoActor([str(log), "0"], "actor-test", 60.0, 60.0)
    try:
        assert await actor.launch() is None
        yield actor
    finally:
        await actor.stop()


async def answers(actor: ReplicaActor, prompts: Sequence[str]) -> dict[str, Any]:
    submits = [
        Submit(prompt, 1, prompt, "/v1/completions", json.dumps({"prompt": prompt}).encode())
        for prompt in prompts
    ]
    for frame in wire.frames(submits):
        await actor.submit(frame)
    found: dict[str, Any] = {}
    while len(found) < len(prompts):
        found |= {back.id: back for frame in await actor.take() for back in wire.read_back(frame)}
    return found


def test_an_actor_answers_and_says_with_what_its_engine_died(tmp_path: Path) -> None:
    async def ask() -> None:
        async with started(tmp_path / "log") as actor:
            found = await answers(actor, ["one", "raise", "refuse"])
            assert isinstance(found["one"], Reply)
            assert isinstance(found["raise"], Raised)
            assert found["refuse"].answer.code == "BadRequestError"
            assert await actor.state() == [{"memory_usage": {"token_capacity": 4000}}]
            found = await answers(actor, ["wait", "kill"])
            assert found["wait"] == wire.Lost("wait", "the engine ended with signal 9", suspect=True)
            assert isinstance(found["kill"], wire.Lost)
            assert await actor.state() == []

    asyncio.run(ask())


def test_an_actor_without_answers_says_that_it_lives(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("sglang.batch.run.ray_replicas.actor.BEAT_SECONDS", 0.01)

    async def listen() -> list[bytes]:
        return await EchoActor([], "actor-test", 1.0, 1.0).take()

    assert asyncio.run(listen()) == []


def test_an_engine_that_does_not_start_is_said(tmp_path: Path) -> None:
    actor = EchoActor(["/nowhere", "0"], "actor-test", 60.0, 60.0)
    why = asyncio.run(actor.launch())
    assert why is not None
    assert "no log" in why

"""The driver's end of replicas, with actors made up in this process."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from stand_ins import FakeCommitter, line, work

from sglang.batch.records import Answer, Usage
from sglang.batch.run.engine.channel import Raised, Reply, Submit
from sglang.batch.run.engine.protocol import EngineDied, EngineFailed
from sglang.batch.run.job import BatchJob
from sglang.batch.run.ray_replicas import engine, replica
from sglang.batch.run.ray_replicas.actor import Place
from sglang.batch.run.ray_replicas.arguments import RayArguments
from sglang.batch.run.ray_replicas.cluster import cpus_per_replica
from sglang.batch.run.ray_replicas.engine import RayEngine, ReplicaLimits
from sglang.batch.run.ray_replicas.replica import ActorGone
from sglang.batch.run.ray_replicas.wire import Back, Lost, frames, read_requests
from sglang.batch.run.remote import dispatcher
from sglang.batch.run.remote.dispatched import LLAMA_3_8B
from sglang.batch.run.tally import Tally


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (dispatcher, "FIRST_WAIT", 0.01),
        (dispatcher, "LONGEST_WAIT", 0.05),
        (dispatcher, "LONGEST_PROBE", 0.05),
        (replica, "SILENT_SECONDS", 0.1),
        (replica, "PLACED_SECONDS", 0.05),
        (engine, "FIRST_SECONDS", 0.05),
    ):
        monkeypatch.setattr(module, name, value)


class FakeActor:
    """Answers with the prompt, unless told otherwise."""

    def __init__(
        self,
        *,
        placed: float = 0.0,
        slow: float = 0.0,
        fails: str | None = None,
        dies_after: float | None = None,
        answer: Callable[["FakeActor", Submit], Back | None] | None = None,
    ) -> None:
        if dies_after is not None:
            asyncio.get_running_loop().call_later(dies_after, self.kill)
        self._placed = placed
        self._slow = slow
        self._fails = fails
        self._answer = answer or (lambda actor, submit: echo(submit))
        self._back: list[Back] = []
        self._some = asyncio.Event()
        self.seen: list[str] = []
        self.dead = False
        self.hung = False
        self.stopped = False
        self.held: list[Submit] = []

    def give(self, back: list[Back]) -> None:
        self._back += back
        self._some.set()

    async def place(self) -> Place:
        await asyncio.sleep(self._placed)
        return Place("node", 1, None)

    async def launch(self) -> str | None:
        return self._fails

    def submit(self, frame: bytes) -> None:
        for submit in read_requests(frame):
            self.seen.append(submit.custom_id)
            if (back := self._answer(self, submit)) is not None:
                self.give([back])

    async def take(self) -> list[bytes]:
        while True:
            if self.hung:
                await asyncio.sleep(3600)
            if self.dead:
                raise ActorGone("it died")
            if self._back:
                back, self._back = self._back, []
                return list(frames(back))
            self._some.clear()
            try:
                await asyncio.wait_for(self._some.wait(), 0.05)
            except TimeoutError:
                return []

    async def state(self) -> list[dict[str, Any]]:
        if self.dead:
            raise ActorGone("it died")
        await asyncio.sleep(self._slow)
        return [{"memory_usage": {"token_capacity": 4000}}]

    async def stop(self) -> None:
        self.stopped = True

    def kill(self) -> None:
        self.dead = True
        self._some.set()


def echo(submit: Submit) -> Back:
    prompt = json.loads(submit.body)["prompt"]
    body = {"choices": [{"text": prompt, "finish_reason": "stop"}]}
    return Reply(submit.id, Answer(200, json.dumps(body).encode(), Usage(10, 4, 2)))


class Fleet:
    """Gives each replica its actors, one after the other; the last one again and again."""

    def __init__(self, *actors: list[Callable[[], FakeActor]]) -> None:
        self._actors = [list(own) for own in actors]
        self.made: list[list[FakeActor]] = [[] for _ in actors]

    def create(self, name: str) -> FakeActor:
        number = int(name.rpartition("r")[2]) - 1
        own = self._actors[number]
        actor = (own.pop(0) if len(own) > 1 else own[0])()
        self.made[number].append(actor)
        return actor


class Result:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.records: list[dict[str, Any]] = []

    def errors(self) -> dict[str, str]:
        return {r["custom_id"]: r["error"]["code"] for r in self.records if r["error"]}

    def ids(self) -> list[str]:
        return sorted(record["custom_id"] for record in self.records)


def run(fleet: Fleet, count: int, *, plans: bool = False, least: int = 1, start: float = 5.0) -> Result:
    result = Result()
    lines = [line(f"id-{i:04d}", body={"prompt": f"{i:04d}", "max_tokens": 4}) for i in range(count)]
    limits = ReplicaLimits(least=least, most=len(fleet.made), pool=1000, restarts=2, start=start)

    async def all_of_it() -> None:
        served = RayEngine(fleet.create, limits, job="job", model="none", plans=plans, say=result.said.append)
        try:
            await served.start()
            job = BatchJob(
                served,
                lambda on_commit: FakeCommitter(
                    on_commit, lambda record: result.records.append(json.loads(record))
                ),
                tally=Tally(),
                pool=1000,
                barrier=served.barrier(),
            )
            await asyncio.wait_for(job.run(work(lines)), 60)
        finally:
            await served.stop()

    asyncio.run(all_of_it())
    return result


def ids(count: int) -> list[str]:
    return [f"id-{i:04d}" for i in range(count)]


def dying(after: int) -> Callable[[], FakeActor]:
    """An actor that dies when it has been given so many requests, with all that it has not given back."""

    def answer(actor: FakeActor, submit: Submit) -> Back | None:
        if len(actor.seen) > after:
            actor.kill()
        return None if actor.dead else echo(submit)

    return lambda: FakeActor(answer=answer)


@pytest.mark.parametrize("plans", [False, True])
def test_replicas_share_the_lines_and_are_stopped_in_order(plans: bool) -> None:
    fleet = Fleet([FakeActor], [FakeActor], [FakeActor])
    assert run(fleet, 90, plans=plans, least=3).ids() == ids(90)
    actors = [actor for own in fleet.made for actor in own]
    assert [len(own) for own in fleet.made] == [1, 1, 1]
    assert all(len(actor.seen) >= 20 for actor in actors)
    assert all(actor.stopped and actor.dead for actor in actors)


def test_what_a_dead_actor_had_is_run_by_others_and_by_its_successor() -> None:
    fleet = Fleet([dying(after=10), FakeActor], [FakeActor])
    result = run(fleet, 200, least=2)
    assert result.ids() == ids(200)
    assert not result.errors()
    assert any("lost a server" in text for text in result.said)


def test_an_actor_that_hangs_is_ended_and_its_lines_run_elsewhere() -> None:
    def hang(actor: FakeActor, submit: Submit) -> Back | None:
        actor.hung = True
        return None

    fleet = Fleet([lambda: FakeActor(answer=hang), FakeActor], [FakeActor])
    result = run(fleet, 100, least=2)
    assert result.ids() == ids(100)
    assert fleet.made[0][0].dead
    assert any("nothing was heard of it" in text for text in result.said)


def test_a_line_of_which_engines_die_gets_an_error_and_those_that_ran_beside_it_do_not() -> None:
    def crash(actor: FakeActor, submit: Submit) -> Back | None:
        actor.held.append(submit)
        if len(actor.held) == 1:
            asyncio.get_running_loop().call_later(0.01, finish, actor)
        return None

    def finish(actor: FakeActor) -> None:
        held, actor.held = actor.held, []
        dies = any(submit.custom_id == "id-0005" for submit in held)
        actor.give([Lost(submit.id, "killed", suspect=True) if dies else echo(submit) for submit in held])

    fleet = Fleet(*([[lambda: FakeActor(answer=crash)]] * 2))
    result = run(fleet, 50)
    assert result.ids() == ids(50)
    assert result.errors() == {"id-0005": "engine_crashed"}


def test_what_a_handler_raises_is_the_lines_error() -> None:
    fleet = Fleet([lambda: FakeActor(answer=lambda actor, submit: Raised(submit.id, "ValueError: no"))])
    result = run(fleet, 3)
    assert result.errors() == dict.fromkeys(ids(3), "internal_error")


def test_one_without_resources_is_said_and_joins_when_it_has_some() -> None:
    silent = [lambda: FakeActor(answer=lambda actor, submit: None, dies_after=1.0), FakeActor]
    fleet = Fleet(silent, [lambda: FakeActor(placed=0.3)])
    result = run(fleet, 2000)
    assert result.ids() == ids(2000)
    assert fleet.made[1][0].seen
    waits = "replica 2 has no place yet (no resources, or a slow machine); the run goes on without it"
    assert result.said.index(waits) < result.said.index("replica 2 starts its engine on node")
    assert "a server is back: replica 2" in result.said


def test_an_engine_that_has_just_started_may_take_long_to_say_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica, "PROBE_SECONDS", 0.05)
    fleet = Fleet([lambda: FakeActor(slow=0.3)])
    assert run(fleet, 5).ids() == ids(5)
    assert len(fleet.made[0]) == 1


def test_no_replica_at_all_ends_the_run_before_it_began() -> None:
    fleet = Fleet([lambda: FakeActor(fails="no such model")], [lambda: FakeActor(placed=3600)])
    with pytest.raises(EngineFailed, match="no such model"):
        run(fleet, 5, start=0.5)


def test_replicas_that_die_again_and_again_end_the_run_to_be_continued() -> None:
    fleet = Fleet(*([[dying(after=0)]] * 2))
    with pytest.raises(ExceptionGroup) as caught:
        run(fleet, 5)
    assert caught.group_contains(EngineDied, match="every replica was started too often")
    assert all(len(own) == 3 for own in fleet.made)


def test_an_engine_without_a_gpu_has_its_share_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    alone = RayArguments(address=None, least=1, most=3, gpus=None, cpus=None)
    assert cpus_per_replica(alone, gpus=0) == 2
    assert cpus_per_replica(replace(alone, most=9), gpus=0) == 1
    assert cpus_per_replica(alone, gpus=1) == 1


def test_gpus_weigh_what_a_request_takes_on_them() -> None:
    names = ("NVIDIA L4", "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "of tomorrow")
    weights = [engine.weight_of(name, LLAMA_3_8B) for name in names]
    assert weights[:3] == sorted(set(weights[:3]))
    assert weights[1] == weights[3] == engine.WEIGHT

"""One engine for several jobs: started once, deaths counted once, suspects told to whose they are."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from stand_ins import settled

from sglang.batch.records import Answer, BatchRequest
from sglang.batch.run.engine.protocol import EngineDied, EngineFailed
from sglang.batch.serve import shared_engine
from sglang.batch.serve.pace import Costs
from sglang.batch.serve.room import Room, Terms
from sglang.batch.serve.shared_engine import JobEngine, SharedEngine

REQUEST = BatchRequest(1, "a", "/v1/completions", {})


class Fake:
    """Answers when it is told to, and dies when it is told to."""

    def __init__(self, *, starts: bool = True) -> None:
        self.starts = starts
        self.started = 0
        self.alive = False
        self.waiting: dict[str, asyncio.Future[Answer]] = {}
        self.requests: dict[str, BatchRequest] = {}
        self.state: dict[str, Any] = {}

    async def start(self) -> None:
        await asyncio.sleep(0)
        if not self.starts:
            raise EngineFailed("it does not start")
        self.started += 1
        self.alive = True

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        self.requests[request_id] = request
        self.waiting[request_id] = asyncio.get_running_loop().create_future()
        try:
            return await self.waiting[request_id]
        finally:
            del self.waiting[request_id]

    def finish(self) -> None:
        for future in self.waiting.values():
            future.set_result(Answer(200, b"{}"))

    def die(self, suspects: frozenset[str] | None) -> None:
        self.alive = False
        death = EngineDied("it died", suspects)
        for future in self.waiting.values():
            future.set_exception(death)

    def barrier(self) -> Any:
        raise AssertionError

    async def internal_state(self) -> list[dict[str, Any]]:
        return [self.state]

    async def stop(self) -> None:
        self.alive = False


def shared(engine: Fake, *, pool: int = 100, restarts: int = 5, priorities: bool = False) -> SharedEngine:
    return SharedEngine(
        engine,
        alive=lambda: engine.alive,
        room=Room(pool, clock=lambda: 0.0),
        priorities=priorities,
        restarts=restarts,
        say=lambda text: None,
    )


def job_of(pool: SharedEngine, window: float = 1e12) -> JobEngine:
    return pool.for_job(Terms("", 1.0, 0.0, window), lambda: 10)


def run(test: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_engine, "LOOK", 0.001)
    monkeypatch.setattr("sglang.batch.run.engine.restarts.FIRST_WAIT", 0.001)
    asyncio.run(test())  # type: ignore[arg-type]


async def submitted(job: JobEngine, id: str) -> "asyncio.Future[Answer]":
    task = asyncio.ensure_future(job.answer(REQUEST, id))
    await settled()
    return task


async def suspects(*tasks: "asyncio.Future[Answer]") -> list[frozenset[str] | None]:
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, EngineDied) for error in found)
    return [error.suspects for error in found if isinstance(error, EngineDied)]


def test_it_is_started_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        engine = Fake()
        pool = shared(engine)
        await asyncio.gather(*(job_of(pool).start() for _ in range(5)))
        assert engine.started == 1

    run(test, monkeypatch)


def test_whoever_gives_up_waiting_does_not_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        engine = Fake()
        pool = shared(engine)
        one = asyncio.ensure_future(pool.up())
        await asyncio.sleep(0)
        other = asyncio.ensure_future(pool.up())
        one.cancel()
        await other
        assert engine.started == 1

    run(test, monkeypatch)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (frozenset({"a1"}), [{"a1"}, {"a1"}, set()]),
        (None, [{"a1", "a2"}, {"a1", "a2"}, {"b1"}]),
        (frozenset({"of an earlier time"}), [{"a1", "a2"}, {"a1", "a2"}, {"b1"}]),
        (frozenset(), [set(), set(), set()]),
    ],
)
def test_each_job_hears_of_its_own_suspects(
    told: frozenset[str] | None, expected: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        engine = Fake()
        pool = shared(engine)
        a, b = job_of(pool), job_of(pool)
        tasks = [await submitted(a, "a1"), await submitted(a, "a2"), await submitted(b, "b1")]
        engine.die(told)
        assert await suspects(*tasks) == expected

    run(test, monkeypatch)


def test_a_death_restarts_it_once_and_too_many_in_a_row_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        engine = Fake()
        pool = shared(engine, restarts=2)
        jobs = [job_of(pool), job_of(pool)]
        for life in (1, 2, 3):
            await asyncio.gather(*(job.start() for job in jobs))
            assert engine.started == life
            tasks = [await submitted(job, f"{number}") for number, job in enumerate(jobs)]
            engine.die(None)
            await suspects(*tasks)
        with pytest.raises(EngineFailed, match="too often"):
            await jobs[0].start()
        assert "too often" in pool.failed.result()
        assert await suspects(await submitted(jobs[1], "late")) == [frozenset()]

    run(test, monkeypatch)


def test_an_answer_between_makes_deaths_count_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        engine = Fake()
        pool = shared(engine, restarts=1)
        job = job_of(pool)
        for _ in range(4):
            await job.start()
            answered = await submitted(job, "good")
            engine.finish()
            assert (await answered).ok
            bad = await submitted(job, "bad")
            engine.die(None)
            await suspects(bad)
        assert engine.started == 4
        assert not pool.failed.done()

    run(test, monkeypatch)


def test_an_engine_that_does_not_start_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        pool = shared(Fake(starts=False))
        with pytest.raises(EngineFailed, match="does not start"):
            await pool.up()
        assert pool.failed.result() == "it does not start"

    run(test, monkeypatch)


def test_a_job_that_is_alone_waits_for_others_and_lets_none_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        engine = Fake()
        pool = shared(engine, pool=2)
        a, b = job_of(pool), job_of(pool)
        first = await submitted(b, "b1")
        entered = asyncio.ensure_future(_alone(a))
        await settled()
        second = await submitted(b, "b2")
        assert list(engine.waiting) == ["b1"]
        engine.finish()
        assert (await first).ok
        mine = await entered
        assert list(engine.waiting) == ["a1"], "another job's request runs beside"
        engine.finish()
        assert (await mine).ok
        await settled()
        assert list(engine.waiting) == ["b2"]
        engine.finish()
        assert (await second).ok

    async def _alone(job: JobEngine) -> "asyncio.Future[Answer]":
        stack = job.alone()
        await stack.__aenter__()
        task = await submitted(job, "a1")
        task.add_done_callback(lambda done: asyncio.ensure_future(stack.__aexit__(None, None, None)))
        return task

    run(test, monkeypatch)


@pytest.mark.parametrize(("priorities", "expected"), [(True, [0, 1, 0, 9]), (False, [9, 9, 9, 9])])
def test_lines_of_a_batch_at_risk_have_the_higher_priority(
    priorities: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        engine = Fake()
        pool = shared(engine, priorities=priorities)
        far, near = job_of(pool), job_of(pool, 1.0)
        urls = {"far": "/v1/completions", "near": "/v1/chat/completions", "more": "/v1/responses"}
        tasks = []
        for id, job in {"far": far, "near": near, "more": far, "none": far}.items():
            request = BatchRequest(1, id, urls.get(id, "/v1/score"), {"priority": 9})
            tasks.append(asyncio.ensure_future(job.answer(request, id)))
        await settled()
        assert [engine.requests[id].body["priority"] for id in ("far", "near", "more", "none")] == expected
        engine.finish()
        await asyncio.gather(*tasks)

    run(test, monkeypatch)


def test_the_engines_own_model_says_how_fast_it_is_before_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        engine = Fake()
        pool = shared(engine)
        await pool.up()
        job = pool.for_job(Terms("", 1.0, 0.0, 1e12), lambda: 10, Costs(100.0))
        tasks = [await submitted(job, f"{i}") for i in range(10)]
        assert not await pool.ask(0.0)
        outlook = {"done": 0.0, "left": 50.0, "left_high": 60.0, "estimated": 1.0}
        # Half of the lines have arrived, so that what is modelled is of half of them.
        engine.state = {"blend": {"waiting": 3, "running": 2, "lengths": [], "outlook": outlook}}
        assert await pool.ask(1.0)
        assert pool.room.pace.per_second == 10.0
        assert pool.room.pace.line_seconds(Costs(100.0)) == 10.0
        engine.finish()
        await asyncio.gather(*tasks)

    run(test, monkeypatch)

"""Places of the engine: who is next, at what rate, and what happens to those that give up."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from stand_ins import settled

from sglang.batch.run.stops import Stops
from sglang.batch.serve import room as rooms
from sglang.batch.serve import turns
from sglang.batch.serve.room import Room, Seat, Terms
from sglang.batch.serve.turns import Turns
from sglang.batch.serve.waiting import Waiting, prompt_order

FAR = 10**9


@dataclass
class Engine:
    """An engine that does one line after the other, those that are hurried first, in its own seconds."""

    places: int = 1000
    now: float = 0.0
    line_seconds: float = 1.0
    running: list[tuple[bool, str, "asyncio.Future[None]"]] = field(default_factory=list)
    done: list[tuple[str, float]] = field(default_factory=list)
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    """What a line costs, by batch, in times of `line_seconds`."""

    def __post_init__(self) -> None:
        self.room = Room(self.places, clock=lambda: self.now)

    def batch(self, name: str, lines: int, *, key: str = "", weight: float = 4, window: float = FAR) -> Seat:
        """Let a batch in and all of its lines wait."""
        self.left[name] = lines
        seat = self.room.enter(Terms(key, weight, self.now, self.now + window), lambda: self.left[name])
        self.tasks += [asyncio.ensure_future(self._line(seat, name)) for _ in range(lines)]
        return seat

    async def _line(self, seat: Seat, name: str) -> None:
        async with self.room.place(seat) as place:
            ended = asyncio.get_running_loop().create_future()
            self.running.append((not place.hurried, name, ended))
            await ended
            place.cost = 100.0 * self.times.get(name, 1.0)
            self.left[name] -= 1

    async def run(self, lines: int | None = None) -> list[str]:
        """Do so many lines, or all; returns whose they were, in order."""
        for _ in range(FAR if lines is None else lines):
            await self._settle()
            if not self.running:
                break
            chosen = min(self.running, key=lambda one: one[0])
            self.running.remove(chosen)
            self.now += self.line_seconds * self.times.get(chosen[1], 1.0)
            self.done.append((chosen[1], self.now))
            chosen[2].set_result(None)
        await self._settle()
        return [name for name, _ in self.done]

    async def _settle(self) -> None:
        for _ in range(6):  # turns of the loop
            await asyncio.sleep(0)
        self.room.look()

    def ended(self, name: str) -> float:
        return max(second for whose, second in self.done if whose == name)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _few_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "BUSY", 4)


def test_without_a_deadline_at_risk_all_lines_are_with_the_engine_at_once() -> None:
    async def test() -> None:
        engine = Engine()
        a, b = engine.batch("a", 40), engine.batch("b", 40)
        await engine.run(1)
        assert (a.free, b.free) == (39, 40)
        await engine.run()

    run(test)


def test_a_later_batch_with_a_nearer_deadline_ends_in_time() -> None:
    async def test() -> None:
        engine = Engine()
        engine.batch("long", 600, window=100_000.0)
        await engine.run(50)
        urgent = engine.batch("urgent", 60, window=200.0)
        await engine.run(20)
        assert 0.0 < urgent.share < 1.0
        await engine.run()
        assert engine.ended("urgent") <= 250.0
        assert engine.ended("long") == 660.0, "the engine stood still"
        between = [name for name, second in engine.done if 60.0 < second < 200.0]
        assert between.count("long") > 20, "more was hurried than the deadline needs"

    run(test)


def test_short_lines_that_might_take_as_long_as_those_before_them_are_not_given_up() -> None:
    async def test() -> None:
        engine = Engine(line_seconds=0.05, times={"long": 10.0})
        engine.batch("long", 400)
        await engine.run(60)
        engine.batch("short", 200, window=40.0)
        await engine.run()
        assert engine.ended("short") <= 30.0 + 40.0, "it was given up, as if each line took 0.5 s"
        assert engine.ended("long") == pytest.approx(210.0), "the engine stood still"

    run(test)


def test_what_came_before_with_a_deadline_is_not_overtaken_by_what_comes_later() -> None:
    async def test() -> None:
        engine = Engine()
        first = engine.batch("first", 60, window=150.0)
        await engine.run(20)
        assert first.free == 40, "alone it needs no hurry"
        engine.batch("later", 600, window=100_000.0)
        await engine.run()
        assert engine.ended("first") <= 150.0
        assert engine.ended("later") == 660.0

    run(test)


def test_a_small_batch_of_another_key_does_not_wait_for_a_large_one() -> None:
    async def test() -> None:
        engine = Engine(places=50)
        engine.batch("large", 1000, key="a")
        await engine.run(100)
        engine.batch("small", 10, key="b")
        await engine.run()
        assert engine.ended("small") <= 100.0 + 2 * 10 / 0.5 + 10.0
        assert engine.ended("large") == 1010.0

    run(test)


def test_keys_take_turns_where_places_are_short_by_their_weight() -> None:
    async def test() -> None:
        engine = Engine(places=4)
        engine.batch("a", 400, key="a", weight=4.0)
        engine.batch("b", 200, key="b", weight=16.0)
        engine.batch("c", 200, key="b", weight=16.0)
        done = await engine.run(200)
        assert 130 <= len([name for name in done if name in "bc"]) <= 170
        assert abs(done.count("b") - done.count("c")) <= 12
        for task in engine.tasks:
            task.cancel()

    run(test)


def test_whoever_gives_up_leaves_no_place_taken() -> None:
    async def test() -> None:
        engine = Engine(places=3)
        seat = engine.batch("a", 10)
        await engine.run(1)
        waiting, running = engine.tasks[-2:], engine.tasks[1:3]
        for task in (*waiting, *running):
            task.cancel()
        await asyncio.gather(*waiting, *running, return_exceptions=True)
        engine.running = [one for one in engine.running if not one[2].done()]
        assert len(await engine.run()) == 6
        assert (seat.free, seat.hurried, bool(seat.waiting)) == (0, 0, False)

    run(test)


def test_a_batch_at_risk_opens_beside_as_many_as_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "AT_A_TIME", 2)

    async def test() -> None:
        room = Room(10, clock=lambda: 0.0)
        order, opened = Turns(room), list[str]()
        ends = asyncio.Event()

        async def open_one(name: str, key: str, window: float, lines: int) -> None:
            async with order.turn(Terms(key, 4.0, 0.0, window), lines, Stops(())):
                opened.append(name)
                await ends.wait()

        batches = [("a1", "a", FAR, 100), ("a2", "a", FAR, 100), ("a3", "a", FAR, 100)]
        batches += [("b1", "b", FAR, 100), ("a4", "a", 50, 200)]
        tasks = []
        for batch in batches:
            tasks.append(asyncio.ensure_future(open_one(*batch)))
            await settled()
        assert opened == ["a1", "a2", "b1", "a4"]
        ends.set()
        await asyncio.gather(*tasks)
        assert opened == ["a1", "a2", "b1", "a4", "a3"]

    run(test)


def test_a_batch_that_is_to_be_closed_waits_for_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "AT_A_TIME", 0)

    async def test() -> None:
        stops = Stops(())
        order = Turns(Room(10))
        entered = asyncio.ensure_future(_enter(order, stops))
        await settled()
        assert not entered.done()
        stops.stop(2)  # type: ignore[arg-type]
        await entered

    async def _enter(order: Turns, stops: Stops) -> None:
        async with order.turn(Terms("a", 4.0, 0.0, FAR), 1, stops):
            pass

    run(test)


def test_hurried_lines_go_in_the_order_of_their_prompts_and_free_ones_in_that_of_the_file() -> None:
    async def test() -> None:
        waiting = Waiting()
        turns = {name: waiting.add((name[0], name)) for name in ("b1", "a1", "c1", "b2", "a2", "c2")}
        turns["a1"].cancel()
        done: list[str] = []
        for hurried in (True, False, True, False, True):
            assert waiting
            waiting.give(hurried=hurried)
            done += [name for name in turns if turns[name].done() and name not in (*done, "a1")]
        assert done == ["a2", "b1", "b2", "c1", "c2"]
        assert not waiting
        assert [turns[name].result() for name in done] == [True, False, True, False, True]

    run(test)


def test_lines_of_a_batch_that_ends_wait_no_longer() -> None:
    async def test() -> None:
        waiting = Waiting()
        turns = [waiting.add(("a",)), waiting.add(("b",))]
        waiting.give(hurried=False)
        waiting.close()
        turns.append(waiting.add(("c",)))
        assert [turn.cancelled() for turn in turns] == [False, True, True]
        assert not waiting

    run(test)


@pytest.mark.parametrize(
    ("body", "order"),
    [
        ({"prompt": "a"}, ("a",)),
        ({"prompt": [104, 105]}, ("hi",)),
        ({"prompt": ["a", "b"]}, ("",)),
        ({"prompt": [-1]}, ("",)),
        ({"messages": [{"content": None}, {"content": [{"type": "image_url"}]}, 7]}, ("", "", "")),
        ({"input": "a"}, ("a",)),
        ({"input": ["a", "b"]}, ("a", "b")),
        ({}, ("",)),
    ],
)
def test_any_body_has_an_order(body: dict[str, object], order: tuple[str, ...]) -> None:
    assert prompt_order(body) == order


def test_a_batch_that_should_have_ended_gets_all_at_once_however_often_it_is_decided() -> None:
    async def test() -> None:
        room = Room(1000, clock=lambda: 0.0)
        seats = [room.enter(Terms("", 4.0, begin, 50.0), lambda: 30) for begin in (0.0, -1000.0, 0.0)]
        lines = []
        for seat in seats[::2]:
            lines += [asyncio.ensure_future(_hold(room, seats[1])) for _ in range(15)]
            await asyncio.sleep(0)
            room.leave(seat)
        await asyncio.sleep(0)
        assert seats[1].free + seats[1].hurried == 30
        for line in lines:
            line.cancel()
        await asyncio.gather(*lines, return_exceptions=True)
        assert seats[1].free + seats[1].hurried == 0

    async def _hold(room: Room, seat: Seat) -> None:
        async with room.place(seat):
            await asyncio.sleep(1e6)

    run(test)

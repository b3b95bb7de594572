"""The pool barrier never holds a run up for longer than its patience."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from sglang.batch.run.barrier import SchedulerBarrier


class FakeTokenizerManager:
    """What the barrier touches of upstream's."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.rid_to_state: dict[str, Any] = {}

    async def _async_dispatch_to_scheduler(self, message: Any) -> None:
        self.sent.append(type(message).__name__)

    def arrive(self, request_id: str, *, dispatched: bool = True) -> None:
        self.rid_to_state[request_id] = SimpleNamespace(dispatched=dispatched)


async def settles(barrier: SchedulerBarrier, in_flight: set[str], *, within: float = 5.0) -> None:
    await asyncio.wait_for(barrier.settle(in_flight, tuple(in_flight)), within)


def test_it_waits_until_every_request_is_with_the_scheduler() -> None:
    async def scenario() -> None:
        manager = FakeTokenizerManager()
        barrier = SchedulerBarrier(manager)
        await barrier.close()
        settled = asyncio.ensure_future(settles(barrier, {"a", "b"}))
        manager.arrive("a")
        manager.arrive("b", dispatched=False)
        await asyncio.sleep(0.1)
        assert not settled.done()
        manager.arrive("b")
        await settled
        await barrier.open()
        assert manager.sent == ["PauseGenerationReqInput", "ContinueGenerationReqInput"]

    asyncio.run(scenario())


def test_a_request_that_fails_on_the_way_is_not_waited_for() -> None:
    async def scenario() -> None:
        barrier = SchedulerBarrier(FakeTokenizerManager())
        await barrier.close()
        in_flight = {"too-long"}
        settled = asyncio.ensure_future(settles(barrier, in_flight))
        await asyncio.sleep(0.1)
        in_flight.clear()
        await settled

    asyncio.run(scenario())


def test_a_request_for_several_answers_is_not_waited_for_beyond_its_expansion() -> None:
    async def scenario() -> None:
        manager = FakeTokenizerManager()
        barrier = SchedulerBarrier(manager)
        await barrier.close()
        manager.arrive("many_0", dispatched=False)
        await settles(barrier, {"many"})

    asyncio.run(scenario())


def test_a_request_that_never_arrives_holds_the_others_no_longer_than_the_patience() -> None:
    async def scenario() -> None:
        barrier = SchedulerBarrier(FakeTokenizerManager(), patience=0.2)
        await barrier.close()
        await settles(barrier, {"stuck"})

    asyncio.run(scenario())


def test_opening_twice_or_without_closing_sends_nothing_more() -> None:
    async def scenario() -> None:
        manager = FakeTokenizerManager()
        barrier = SchedulerBarrier(manager)
        await barrier.open()
        await barrier.close()
        await barrier.open()
        await barrier.open()
        assert manager.sent.count("ContinueGenerationReqInput") == 1

    asyncio.run(scenario())


def test_an_sglang_without_the_seam_is_named() -> None:
    with pytest.raises(AttributeError, match="_async_dispatch_to_scheduler"):
        SchedulerBarrier(SimpleNamespace(rid_to_state={}))

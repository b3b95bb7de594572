"""The poller ends by itself where there is nothing to see, and with a last poll where there is."""

import asyncio
from typing import Any

import pytest
from stand_ins import settled

from sglang.batch.run import state_poller
from sglang.batch.run.state_poller import StatePoller


class FakeScheduler:
    def __init__(self, **state: Any) -> None:
        self.state = {"memory_usage": {"token_capacity": 4000}, **state}
        self.asked = 0

    async def internal_state(self) -> list[dict[str, Any]]:
        self.asked += 1
        return [self.state]


def test_another_policy_is_polled_once() -> None:
    scheduler = FakeScheduler()
    poller = StatePoller(scheduler.internal_state)
    asyncio.run(asyncio.wait_for(poller.run(), 60))
    assert scheduler.asked == 1
    assert poller.states == []
    assert poller.capacity == 4000


def test_the_last_poll_comes_after_the_stop() -> None:
    scheduler = FakeScheduler(blend={"held": 0})
    poller = StatePoller(scheduler.internal_state)

    async def scenario() -> None:
        polling = asyncio.ensure_future(poller.run())
        await settled()
        scheduler.state["blend"] = {"held": 7}
        poller.stop()
        await asyncio.wait_for(polling, 60)

    asyncio.run(scenario())
    assert [state["held"] for _, state in poller.states] == [0, 7]
    seconds = [seconds for seconds, _ in poller.states]
    assert seconds == sorted(seconds)


def test_a_long_run_keeps_few_states_and_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_poller, "KEPT", 10)
    monkeypatch.setattr(state_poller, "INTERVAL", 0.0)
    scheduler = FakeScheduler(blend={"held": 0})
    poller = StatePoller(scheduler.internal_state)

    async def scenario() -> None:
        polling = asyncio.ensure_future(poller.run())
        while scheduler.asked < 500:
            scheduler.state["blend"] = {"held": scheduler.asked}
            await asyncio.sleep(0)
        poller.stop()
        await asyncio.wait_for(polling, 60)

    asyncio.run(scenario())
    held = [state["held"] for _, state in poller.states]
    assert len(held) <= 10
    assert held == sorted(held)
    assert held[0] == 0
    assert held[-1] >= 490

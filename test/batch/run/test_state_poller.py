"""The sampler ends by itself where there is nothing to see, and with a last look where there is."""

import asyncio
from typing import Any

from sglang.batch.run.state_poller import Sampler


class FakeScheduler:
    def __init__(self, **state: Any) -> None:
        self.state = {"memory_usage": {"token_capacity": 4000}, **state}
        self.asked = 0

    async def internal_state(self) -> list[dict[str, Any]]:
        self.asked += 1
        return [self.state]


def test_another_policy_is_asked_once() -> None:
    scheduler = FakeScheduler()
    sampler = Sampler(scheduler.internal_state)
    asyncio.run(asyncio.wait_for(sampler.run(), 5))
    assert scheduler.asked == 1
    assert sampler.states == []
    assert sampler.capacity == 4000


def test_the_last_look_is_taken_after_the_stop() -> None:
    scheduler = FakeScheduler(blend={"held": 0})
    sampler = Sampler(scheduler.internal_state)

    async def scenario() -> None:
        sampling = asyncio.ensure_future(sampler.run())
        await asyncio.sleep(0.05)
        scheduler.state["blend"] = {"held": 7}
        sampler.stop()
        await asyncio.wait_for(sampling, 5)

    asyncio.run(scenario())
    assert [state["held"] for _, state in sampler.states] == [0, 7]
    seconds = [seconds for seconds, _ in sampler.states]
    assert seconds == sorted(seconds)

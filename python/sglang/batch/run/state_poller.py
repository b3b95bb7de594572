"""Polls the scheduler's state while a batch runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

from sglang.batch.run.blend_history import BlendState

INTERVAL = 1.0
"""Seconds between two polls; each is one control message that the scheduler answers between steps."""


KEPT = 4096
"""States kept at most; of more, every other one goes, so that old ones lie further apart."""


class StatePoller:
    """Collects the blend policy's state, of the first data-parallel rank's scheduler.

    Args:
        internal_state: asks all ranks' schedulers.

    Attributes:
        states: each poll's seconds since the start, and the state then; empty under any other policy.
        capacity: KV capacity in tokens, None until the first poll is answered.
    """

    def __init__(self, internal_state: Callable[[], Awaitable[list[dict[str, Any]]]]) -> None:
        self.states: list[tuple[float, BlendState]] = []
        self.capacity: int | None = None
        self._internal_state = internal_state
        self._started: float | None = None
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Poll until stopped, and once more then; under a policy without a state to see, poll once.

        May be run again with another engine; seconds go on from the first start.
        """
        self._started = self._started or time.monotonic()
        while await self._poll() and not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), INTERVAL)

    def stop(self) -> None:
        """Let `run` end after one more poll.

        Never cancel it instead: upstream's control channel has one message under way at a time, and a
        caller that goes away before the answer leaves the channel occupied.
        """
        self._stopped.set()

    async def _poll(self) -> bool:
        state = (await self._internal_state())[0]
        self.capacity = state.get("memory_usage", {}).get("token_capacity")
        blend = state.get("blend")
        if not isinstance(blend, dict):
            return False
        self.states.append((time.monotonic() - (self._started or 0.0), cast(BlendState, blend)))
        if len(self.states) > KEPT:
            del self.states[1:-1:2]
        return True

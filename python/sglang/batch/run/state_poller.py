"""The scheduler's own numbers, looked at from time to time while a batch runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

INTERVAL = 1.0
"""Seconds between two samples; each is one control message that the scheduler answers between steps."""


class Sampler:
    """Collects the `blend` part of the schedulers' internal state (of the first data-parallel rank).

    Attributes:
        states: `(seconds since the start, state)`; empty with any other policy.
        capacity: KV capacity in tokens, None until known.
    """

    def __init__(self, internal_state: Callable[[], Awaitable[list[dict[str, Any]]]]) -> None:
        self.states: list[tuple[float, dict[str, Any]]] = []
        self.capacity: int | None = None
        self._internal_state = internal_state
        self._started = time.monotonic()
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Sample until stopped, and once more then; or until it turns out that there is nothing to see."""
        while await self._sample() and not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), INTERVAL)

    def stop(self) -> None:
        """Let `run` end. Never cancel it instead: upstream's control channel has one message under way at
        a time, and a caller that goes away before the answer leaves the channel occupied."""
        self._stopped.set()

    async def _sample(self) -> bool:
        state = (await self._internal_state())[0]
        self.capacity = state.get("memory_usage", {}).get("token_capacity")
        blend = state.get("blend")
        if not isinstance(blend, dict):
            return False
        self.states.append((time.monotonic() - self._started, blend))
        return True

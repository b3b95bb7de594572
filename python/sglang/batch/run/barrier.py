"""The pool barrier: nothing is admitted until the planner can see the whole pool.

A plan is only as good as the pool it sees. Submitted one by one, the first requests would be admitted
before the others are tokenized. So the scheduler is told to pause in place before the first request and
to continue once all have reached it: upstream's `PauseGenerationReqInput` / `ContinueGenerationReqInput`,
sent straight to the scheduler. (Its public `pause_generation` also holds requests back in the
TokenizerManager, and they then trickle in on release: the opposite of what is wanted.)

That way to the scheduler is private in upstream, so it is looked up once and the run goes on without a
barrier where it is missing. A request that is slow to arrive (a picture that downloads) does not hold
the others for ever: after `patience` seconds without any arrival the barrier opens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Container, Iterable
from typing import Protocol

from sglang.batch.upstream import TokenizerManager

PATIENCE = 10.0
"""Seconds without a new arrival at the scheduler after which the barrier opens anyway."""

POLL = 0.02
POLL_PER_REQUEST = 2e-6
"""Seconds between two looks at the arrivals: a fixed part, and one per request that is looked at, since the
event loop has tokenizing to do meanwhile."""


class Barrier(Protocol):
    """What a job needs of a barrier."""

    async def close(self) -> None:
        """Hold all admissions from now on."""

    async def settle(self, in_flight: Container[str], request_ids: Iterable[str]) -> None:
        """Return when every request has reached the scheduler, or none more does for a while.

        Args:
            in_flight: ids of requests that are submitted and not answered; live, looked at repeatedly.
            request_ids: the ids to wait for.
        """

    async def open(self) -> None:
        """Let the scheduler admit. Safe to call at any time and more than once."""


class NoBarrier:
    """Holds nothing: for an SGLang without the seam, and for `--no-pool-barrier`."""

    async def close(self) -> None:
        return

    async def settle(self, in_flight: Container[str], request_ids: Iterable[str]) -> None:
        return

    async def open(self) -> None:
        return


class SchedulerBarrier:
    """Holds the schedulers behind a tokenizer.

    Args:
        patience: seconds without a new arrival after which the barrier settles anyway.

    Raises:
        AttributeError: this SGLang lacks what the barrier needs; the message names the symbol.
    """

    def __init__(self, tokenizer_manager: TokenizerManager, *, patience: float = PATIENCE) -> None:
        from sglang.srt.managers.io_struct import ContinueGenerationReqInput, PauseGenerationReqInput
        from sglang.srt.managers.tokenizer_manager import ReqState

        if "dispatched" not in ReqState.__dataclass_fields__:
            raise AttributeError("sglang.srt.managers.tokenizer_manager.ReqState.dispatched")
        self._send = tokenizer_manager._async_dispatch_to_scheduler
        self._states = tokenizer_manager.rid_to_state
        self._pause = PauseGenerationReqInput(mode="in_place")
        # Nothing ran during the pause, so there is no device cache worth emptying.
        self._continue = ContinueGenerationReqInput(torch_empty_cache=False)
        self._patience = patience
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        await self._send(self._pause)

    async def settle(self, in_flight: Container[str], request_ids: Iterable[str]) -> None:
        if not self._closed:
            return
        missing, since = list(request_ids), time.monotonic()
        while True:
            still = [rid for rid in missing if rid in in_flight and not self._arrived(rid)]
            if not still:
                return
            now = time.monotonic()
            if len(still) < len(missing):
                since = now
            elif now - since > self._patience:
                return
            missing = still
            await asyncio.sleep(POLL + POLL_PER_REQUEST * len(missing))

    async def open(self) -> None:
        if self._closed:
            self._closed = False
            await self._send(self._continue)

    def _arrived(self, request_id: str) -> bool:
        """Tell whether the request is with the scheduler. The socket keeps order, so sent means there.

        Upstream expands a request for several prompts or answers into `<id>_0`, `<id>_1`, ...; with
        several answers it first waits for a run of the prompt alone, which the barrier holds too. Such
        a request counts as arrived when its expansion exists: more of it cannot come now.
        """
        state = self._states.get(request_id)
        if state is not None:
            return bool(state.dispatched)
        return f"{request_id}_0" in self._states

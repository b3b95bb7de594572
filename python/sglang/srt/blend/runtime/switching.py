"""Another policy decides for a while on a server that was started with blend, and blend takes over again.

While another one decides, the planner watches: it sees who arrives, begins, is retracted and ends, and learns
how long answers are. So blend can go on at any step, with the running requests accounted for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sglang.srt.blend.runtime.arguments import POLICY
from sglang.srt.blend.runtime.policy import BlendSchedulePolicy
from sglang.srt.blend.runtime.pool import UNKNOWN
from sglang.srt.blend.runtime.prefill_adder import BoundPrefillAdder
from sglang.srt.blend.runtime.radix.sharing import held_tokens
from sglang.srt.blend.runtime.request import Request
from sglang.srt.managers.schedule_policy import (
    AddReqResult,
    CacheAgnosticPolicy,
    CacheAwarePolicy,
    SchedulePolicy,
)

if TYPE_CHECKING:
    from sglang.srt.blend.runtime.parts import BlendParts

logger = logging.getLogger(__name__)

POLICIES = (POLICY, *(policy.value for policy in (*CacheAwarePolicy, *CacheAgnosticPolicy)))
"""Names of what can decide."""

_WITH_PRIORITIES = (POLICY, CacheAgnosticPolicy.FCFS.value, CacheAgnosticPolicy.LOF.value)


class WatchedPolicy(SchedulePolicy):
    """One of upstream's policies orders the queue, and the planner hears what is in it.

    Raises:
        ValueError: upstream refuses the policy here.
    """

    def __init__(self, name: str, blend: BlendSchedulePolicy) -> None:
        super().__init__(
            name,
            blend.tree_cache,
            blend.enable_hierarchical_cache,
            blend.enable_priority_scheduling,
            blend.schedule_low_priority_values_first,
        )
        self._pool = blend.pool

    def calc_priority(self, waiting_queue: list[Request], *args: Any, **kwargs: Any) -> None:
        """Take in what happened to the queue, then reorder it in place."""
        self._pool.synchronise(waiting_queue)
        super().calc_priority(waiting_queue, *args, **kwargs)


class WatchedPrefillAdder(BoundPrefillAdder):
    """Upstream decides who joins a prefill batch, and the planner hears of it."""

    def add_one_req(
        self, req: Request, has_chunked_req: bool, truncation_align_size: int | None
    ) -> AddReqResult:
        """Let upstream admit a waiting request or not."""
        slot = self.blend.pool.waiting_slot(req)
        cached, held = req.prefix_len + req.host_hit_length, held_tokens(self.tree_cache, req)
        result = super().add_one_req(req, has_chunked_req, truncation_align_size)
        if slot != UNKNOWN and self.can_run_list and self.can_run_list[-1] is req:
            self.blend.planner.admit(slot, min(held, len(req.origin_input_ids)))
            self.blend.pool.admitted(req, slot, cached)
        return result

    def add_chunked_req(self, req: Request) -> Request | None:
        """The next chunk of a prompt, no larger than what is free now.

        Upstream takes the rest of a prompt for granted, since its budget has kept room for it; blend, which
        began the prompt, relied on a forecast.
        """
        if self.rem_chunk_tokens is not None:
            room = int(self.memory_budget.remaining_current)
            if room <= 0:
                self.rem_chunk_tokens = 0
                return req
            self.chunked_req_limit = min(room, self.chunked_req_limit or room)
        unfinished: Request | None = super().add_chunked_req(req)
        return unfinished


def problem(scheduler: Any, name: str, value: float) -> str | None:
    """Why a policy cannot take over; None if it can.

    Args:
        value: must be 1; upstream's request takes numbers only, so the name is in its key.
    """
    if scheduler.schedule_policy != POLICY:
        return f"the server was not started with --schedule-policy {POLICY}"
    if value != 1:
        return f"1 chooses {name}, {value} means nothing"
    if scheduler.enable_priority_scheduling and name not in _WITH_PRIORITIES:
        return f"--enable-priority-scheduling goes with {', '.join(_WITH_PRIORITIES)} only"
    try:
        _policy(scheduler.blend, name)
    except ValueError as error:
        return str(error)
    return None


def switch(scheduler: Any, name: str) -> dict[str, str]:
    """Let a policy decide from the next step on.

    Returns:
        What changes in the server's arguments.
    """
    blend = scheduler.blend
    blend.log.end_step()
    scheduler.policy = _policy(blend, name)
    blend.watches = None if name == POLICY else name
    logger.info("blend: %s decides from now on", name)
    return {"schedule_policy": name}


def _policy(blend: BlendParts, name: str) -> SchedulePolicy:
    return blend.policy if name == POLICY else WatchedPolicy(name, blend.policy)

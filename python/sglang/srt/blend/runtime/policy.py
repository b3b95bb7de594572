"""``--schedule-policy blend``: the order in which upstream offers waiting requests to admission."""

from __future__ import annotations

from typing import Any

from sglang.srt.blend.runtime.pool import RequestPool
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache

MAX_PROPOSALS = 512
"""Requests offered per step at most: more than one prefill batch takes, few enough to move each step."""


class BlendSchedulePolicy(SchedulePolicy):
    """Puts the planner's next requests at the front of the waiting queue.

    Upstream calls ``calc_priority`` before every prefill batch. The base class runs as ``fcfs``, so
    nothing else of upstream reorders or matches the queue.

    Attributes:
        proposals: how many requests at the front of the queue may be admitted in this step; the prefill
            adder stops behind them.
    """

    def __init__(
        self,
        pool: RequestPool,
        tree_cache: BasePrefixCache,
        *,
        enable_hierarchical_cache: bool,
        enable_priority_scheduling: bool,
        schedule_low_priority_values_first: bool,
        max_proposals: int = MAX_PROPOSALS,
    ) -> None:
        super().__init__(
            "fcfs",
            tree_cache,
            enable_hierarchical_cache,
            enable_priority_scheduling,
            schedule_low_priority_values_first,
        )
        self.pool = pool
        self.max_proposals = max_proposals
        self.proposals = 0

    def calc_priority(
        self, waiting_queue: list[Any], running_batch: Any = None, processed_tokens: int = 0
    ) -> None:
        """Reorder the queue in place; Python work is proportional to arrivals and proposals."""
        self.pool.synchronise(waiting_queue)
        self.proposals = self.pool.bring_to_front(waiting_queue, self.max_proposals)

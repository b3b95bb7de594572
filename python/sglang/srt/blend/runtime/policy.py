"""``--schedule-policy blend``: the order in which upstream offers waiting requests to admission."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sglang.srt.blend.core.step.pacing import Pacer, Quota
from sglang.srt.blend.runtime.pool import RequestPool
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache

MIN_PROPOSALS, MAX_PROPOSALS = 32, 512
"""Requests offered per step, within these bounds twice as many as were lately admitted: each of them is
moved to the front and looked at again in the next step."""

SPARE = 0.5
"""Of the quota, see `BlendSchedulePolicy.spare`."""


class BlendSchedulePolicy(SchedulePolicy):
    """Puts the planner's next requests at the front of the waiting queue.

    Upstream calls ``calc_priority`` before every prefill batch. The base class runs as ``fcfs``, so
    nothing else of upstream reorders or matches the queue.

    Attributes:
        proposals: how many requests at the front of the queue may be admitted in this step; the prefill
            adder stops behind them.
        progress: of the running requests at the last call; admissions: the pool's count then.
        quota: what this step should prefill; None leaves it to upstream's limits.
        spare: tokens to prefill that are offered beyond the quota, for those who wait for a shared prefix.
    """

    def __init__(
        self,
        pool: RequestPool,
        tree_cache: BasePrefixCache,
        *,
        enable_hierarchical_cache: bool,
        enable_priority_scheduling: bool,
        schedule_low_priority_values_first: bool,
        pacer: Pacer | None = None,
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
        self.pacer = pacer
        self.max_proposals = max_proposals
        self.proposals = 0
        self.admissions = 0
        self._limit = max_proposals
        self.progress = pool.progress()
        self.quota: Quota | None = None
        self.spare = 0

    def calc_priority(
        self, waiting_queue: list[Any], running_batch: Any = None, processed_tokens: int = 0
    ) -> None:
        """Reorder the queue in place; Python work is proportional to arrivals and proposals."""
        pool = self.pool
        pool.synchronise(waiting_queue)
        last, self.admissions = pool.admissions - self.admissions, pool.admissions
        # Slow to fall: where prefill has passes of its own, it comes in bursts.
        self._limit = min(max(2 * last, self._limit - self._limit // 16, MIN_PROPOSALS), self.max_proposals)
        pool.plan(waiting_queue, self.max_proposals, paced=self.pacer is not None)
        self.progress = pool.progress()
        self.quota = self._quota()
        self.spare, offered = 0, self.quota
        if self.quota is not None:
            self.spare = int(SPARE * self.quota.tokens)
            offered = replace(self.quota, tokens=self.quota.tokens + self.spare)
        self.proposals = pool.bring_to_front(waiting_queue, self._limit, offered)

    @property
    def overlaps(self) -> bool:
        """Whether prefill is paced to hide behind memory traffic."""
        return self.pacer is not None and self.pacer.overlapped

    def _quota(self) -> Quota | None:
        """What the pacer asks of this step; nothing while there is no work to spread."""
        pool, progress = self.pool, self.progress
        if self.pacer is None or pool.everything_fits or not pool.running:
            return None
        left = pool.planner.work_left(progress.remaining, progress.context)
        return self.pacer.quota(
            left, decode_rows=len(progress.context), kv_tokens=float(progress.context.sum())
        )

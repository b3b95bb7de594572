"""``--schedule-policy blend``: the order in which upstream offers waiting requests to admission."""

from __future__ import annotations

from typing import Any, Protocol

from sglang.srt.blend.core.step.step import Step, StepLimits
from sglang.srt.blend.runtime.admission_log import AdmissionLog
from sglang.srt.blend.runtime.pool import RequestPool
from sglang.srt.blend.runtime.request import Request
from sglang.srt.blend.runtime.speculation import observe, tokens_to_come
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache


class Allocator(Protocol):
    """What is read of upstream's KV allocator."""

    def available_size(self) -> int:
        """KV tokens that are free."""


class BlendSchedulePolicy(SchedulePolicy):
    """Begins the planner's step and puts its requests at the front of the waiting queue.

    Upstream calls ``calc_priority`` before every prefill batch. The base class runs as ``fcfs``, so
    nothing else of upstream reorders or matches the queue.

    Args:
        allocator: of the KV pool.
        limits: what the engine lets a step do.
        log: where admissions are written, if anywhere.

    Attributes:
        step: the decisions of the present prefill step; the prefill adder asks it.
    """

    step: Step

    def __init__(
        self,
        pool: RequestPool,
        tree_cache: BasePrefixCache,
        allocator: Allocator,
        *,
        limits: StepLimits,
        log: AdmissionLog,
        enable_hierarchical_cache: bool,
        enable_priority_scheduling: bool,
        schedule_low_priority_values_first: bool,
    ) -> None:
        super().__init__(
            "fcfs",
            tree_cache,
            enable_hierarchical_cache,
            enable_priority_scheduling,
            schedule_low_priority_values_first,
        )
        self.pool = pool
        self.allocator = allocator
        self.limits = limits
        self.log = log

    def calc_priority(
        self, waiting_queue: list[Request], running_batch: Any = None, processed_tokens: int = 0
    ) -> None:
        """Reorder the queue in place; Python work is proportional to arrivals and proposals."""
        pool = self.pool
        self.log.end_step()
        pool.synchronise(waiting_queue)
        observe(pool.planner.speculation, pool.holding().values())
        self.step = pool.planner.begin_step(
            pool.holders(running_batch),
            self.used_tokens(),
            self.limits,
            first=pool.waiting_slot(waiting_queue[0]) if waiting_queue else None,
            choose=pool.choose,
            urgent=pool.priorities.urgent(),
        )
        pool.bring_to_front(waiting_queue, self.step)

    def used_tokens(self) -> int:
        """KV tokens that running requests hold or take with their next step, shared prefixes counted once.

        Without speculative decoding, the token of the next step is left out.
        """
        planner = self.pool.planner
        free = self.allocator.available_size() + self.tree_cache.evictable_size()
        to_come = tokens_to_come(planner.speculation, self.pool.holding().values())
        return planner.kv_capacity - int(free) + to_come

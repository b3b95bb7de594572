"""What one prefill step leaves to the next."""

from __future__ import annotations

from collections import Counter

from sglang.srt.blend.core.pool.request_table import RequestTable
from sglang.srt.blend.core.step.dual_scan import Side
from sglang.srt.blend.core.step.leaders import PrefixLeaders
from sglang.srt.blend.core.step.verdict import Reason

MIN_PROPOSALS = 32
"""Requests that a step may propose at least."""

RETRACTED = 50
"""Of so many requests one of unknown length may be retracted because it began in room promised to others."""


class StepMemory:
    """Lives as long as the planner; a `Step` reads and writes it.

    Args:
        table: the requests.
        leader_lag: steps until a computed prefix can be matched; see `PrefixLeaders`.

    Attributes:
        leaders: who computes a prefix for others.
        full_sides: sides whose next request did not fit; none again when somebody leaves or the plan changes.
        ahead: slots of requests that wait a step for a prefix, and were looked at before their side was full.
        longest_fit: output tokens of the longest memory-side request that fits behind one that did not; None
            while any may.
        draining: whether what waits is the rest of a pool that did not fit.
        retractions: times that a running request went back to the queue.
        reasons: how often each `Reason` was given.
        admissions: in all steps.
    """

    def __init__(self, table: RequestTable, leader_lag: int = 1) -> None:
        self.leaders = PrefixLeaders(table, leader_lag)
        self.full_sides: set[Side] = set()
        self.ahead: set[int] = set()
        self.longest_fit: int | None = None
        self.draining = False
        self.retractions = 0
        self.reasons: Counter[Reason] = Counter()
        self.admissions = 0
        self._table = table
        self._proposals: int | None = None
        self._admitted = 0

    def begin_step(self, max_proposals: int) -> int:
        """A step begins; returns how many requests it may propose.

        Twice as many as the last step admitted: each is moved to the front of the queue and looked at.
        Slow to fall, since where prefill has passes of its own it comes in bursts.
        """
        self.leaders.next_step()
        last = max_proposals if self._proposals is None else self._proposals
        self._proposals = min(max(2 * self._admitted, last - last // 16, MIN_PROPOSALS), max_proposals)
        self._admitted = 0
        return self._proposals

    def admitted(self) -> None:
        """One more request was admitted in this step."""
        self._admitted += 1
        self.admissions += 1

    def somebody_left(self) -> None:
        """KV was given back, or the plan has changed: what did not fit may be tried again."""
        self.full_sides.clear()
        self.ahead.clear()

    def may_preempt(self, preemptible: int) -> bool:
        """Whether one more request of unknown length may begin that will most likely be retracted.

        Not if too many have been, and those that run will be: what such a request saves is a guess.

        Args:
            preemptible: requests that run so already.
        """
        return self.retractions + preemptible < 1 + self.admissions // RETRACTED

    def may_fit(self, side: Side, slot: int) -> bool:
        """False for a request that need not be tried again until somebody leaves.

        Args:
            side: where it waits.
        """
        if side not in self.full_sides or slot in self.ahead:
            return True
        fits = self.longest_fit is None or self._table.expected(slot) <= self.longest_fit
        return side is Side.MEMORY and fits

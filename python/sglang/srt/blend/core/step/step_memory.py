"""What one prefill step leaves to the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sglang.srt.blend.core.pool.request_table import RequestTable
from sglang.srt.blend.core.step.dual_scan import Side
from sglang.srt.blend.core.step.gathering import Gathering
from sglang.srt.blend.core.step.leaders import PrefixLeaders
from sglang.srt.blend.core.step.look_ahead import FEW
from sglang.srt.blend.core.step.verdict import Decision, Reason

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
        gathering: whether a prefill pass of its own pays.
        full_sides: sides whose next request did not fit; none again when somebody leaves or the plan changes.
        ahead: slots of requests that wait a step for a prefix, and were looked at before their side was full.
        no_room: whether the proposed request that was looked at last had to wait for KV that others hold.
        readers: slots of requests whose long prefix another has computed since the last plan: it may leave
            the cache with that one.
        longest_fit: output tokens of the longest memory-side request that fits behind one that did not; None
            while any may.
        draining: whether what waits is the rest of a pool that did not fit.
        retractions: times that a running request went back to the queue.
        reasons: how often each `Reason` was given.
        admissions: in all steps.
    """

    def __init__(self, table: RequestTable, leader_lag: int = 1) -> None:
        self.leaders = PrefixLeaders(table, leader_lag)
        self.gathering = Gathering()
        self.full_sides: set[Side] = set()
        self.ahead: set[int] = set()
        self.no_room = False
        self.readers: set[int] = set()
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

    def noted(self, decision: Decision) -> Decision:
        """Count what was decided about a request that was looked at; returns the decision."""
        self.reasons[decision.reason] += 1
        if decision.reason is not Reason.NOT_PROPOSED:
            self.no_room = decision.reason.lacks_memory or decision.reason is Reason.SIDE_WAITS
        return decision

    def admitted(self, slot: int) -> None:
        """One more request was admitted in this step."""
        self.ahead.discard(slot)
        self.readers.discard(slot)
        self._admitted += 1
        self.admissions += 1

    def somebody_left(self) -> None:
        """KV was given back: what did not fit may be tried again."""
        self.full_sides.clear()
        self.ahead.clear()

    def plan_changed(self) -> None:
        """The order or estimates have changed: what did not fit may be tried again, and at once."""
        self.somebody_left()
        self.no_room = False
        self.readers.clear()
        self.gathering.look_again()

    def worth_a_pass(self, running: int, proposals: Sequence[int]) -> bool:
        """Whether somebody should begin in a step whose prefill has a pass of its own; see `Gathering`.

        Args:
            running: requests that hold KV.
            proposals: slots that the plan wants to begin.
        """
        full = not proposals or self.no_room
        pays = self.gathering.pays(running=running, begun=self.admissions, full=full)
        return pays or running <= FEW or not self.readers.isdisjoint(proposals)

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

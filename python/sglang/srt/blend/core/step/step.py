"""One prefill step: who is proposed, and for each of them in turn whether it begins now, and why.

    step = planner.begin_step(running, used_tokens, limits)
    for slot in step.proposals:
        decision = step.consider(slot, new_tokens)
        if decision.admits:             # and the engine can allocate it
            step.admitted(decision, prefill_tokens=..., shared_tokens=...)
        elif decision.verdict is Verdict.ENOUGH:
            break

Four questions are asked of a request, in this order: is it its turn (paper 5.3), has its side been found
full, does another compute its prefix (paper A.2), does its future fit (paper 5.3, with lengths estimated as
in 5.1)? A step is made, asked and forgotten; what the next one needs to know is in `StepMemory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.step.dual_scan import Side
from sglang.srt.blend.core.step.leaders import CACHE_SHARE, WORTH_A_STEP
from sglang.srt.blend.core.step.ledger import Ledger, Progress
from sglang.srt.blend.core.step.look_ahead import FEW, LATE_STEPS, look_ahead
from sglang.srt.blend.core.step.pacing import Quota
from sglang.srt.blend.core.step.room import Room, whole_pages
from sglang.srt.blend.core.step.step_memory import StepMemory
from sglang.srt.blend.core.step.verdict import Decision, Reason, Verdict

Ints = NDArray[np.int64]

PREEMPTION_GAIN = 1.5
"""How many times its cost a preemptible request must save: others who come meanwhile cut its stay short."""

MAX_PASSED_OVER = 32
"""Requests that one step may pass over: each costs a prefix match."""


class Running(NamedTuple):
    """The requests that hold KV when a step begins, in order of admission; arrays (n,).

    Attributes:
        slots: requests.
        generated: output tokens of each so far.
    """

    slots: Ints
    generated: Ints


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What the engine lets a step do.

    Attributes:
        max_proposals: requests that may be looked at in one step.
        page_size: tokens of a KV page.
        forecasts: whether future KV use is forecast; otherwise the engine's own budgets decide.
        may_defer: whether a request that was looked at may be left in the queue while others go on.
    """

    max_proposals: int = 512
    page_size: int = 1
    forecasts: bool = True
    may_defer: bool = True


class Step:
    """The decisions of one prefill step; see `StepMaker.make`.

    Args:
        ledger: who waits and runs; `admitted` writes to it.
        memory: what earlier steps have left.
        progress: of the requests that hold KV, in order of admission.
        used_tokens: KV tokens that they hold, those ahead included, shared prefixes counted once.
        limits: of the engine.
        quota: what the compute side should prefill; None leaves it to the engine's limits.
        surplus: prompt tokens that are proposed beyond the quota, to replace those who wait for a prefix.
        overlaps: whether prefill hides behind memory traffic, so that no step has a fixed cost to share.
        proposals: slots to consider, in order.
        first: slot of the request that is proposed if nobody else is and nothing runs.
        everything_fits: whether all that waits fits beside what runs: then everyone is proposed.
        one_line: whether requests wait in one line instead of one for each side.
        urgent: whether the proposals wait for nothing but room, of which none is kept for others.
        visits: whether requests in one line may begin as preemptible ones, as those of the memory side do.

    Attributes:
        proposals, everything_fits: as given.
        paced: whether the compute side has a quota.
    """

    def __init__(
        self,
        ledger: Ledger,
        memory: StepMemory,
        *,
        progress: Progress,
        used_tokens: int,
        limits: StepLimits,
        quota: Quota | None,
        surplus: int,
        overlaps: bool,
        proposals: Sequence[int],
        first: int | None,
        everything_fits: bool,
        one_line: bool,
        urgent: bool = False,
        visits: bool = False,
    ) -> None:
        self.everything_fits, self._one_line, self._urgent = everything_fits, one_line, urgent
        self.paced, self._visits = quota is not None, visits
        self._ledger, self._memory, self._limits = ledger, memory, limits
        self._ahead, self._late = ledger.speculation.ahead, ledger.speculation.tokens(LATE_STEPS)
        self._progress = progress
        self._admitted: list[int] = []  # since `progress` was read
        self._used = used_tokens
        self._idle, self._began = not len(progress.slots), False
        self._quota = 0 if quota is None else quota.tokens  # what is left of it
        self._surplus = surplus  # what is left of it
        self._overlaps = overlaps
        self._room: Room | None = None
        self._passed_over, self._first = 0, first
        self.propose(proposals)

    # ------------------------------------------------------------- whose turn

    def propose(self, slots: Sequence[int]) -> None:
        """Consider these instead, in this order."""
        self.proposals = list(slots)
        if not slots and self._idle and self._first is not None:
            self.proposals = [self._first]  # whatever the plan says, someone goes
        self._proposed = frozenset(self.proposals)

    def consider(
        self,
        slot: int,
        new_tokens: int,
        *,
        shares: bool = True,
        unheld_tokens: int = 0,
        chunk_tokens: int | None = None,
    ) -> Decision:
        """Decide about one request; nothing changes but what the step remembers of it.

        Args:
            slot: a waiting request.
            new_tokens: prompt tokens that it has to compute.
            shares: whether it can use KV that others compute.
            unheld_tokens: cached tokens of its prefix that nobody who runs holds: admitted, it holds them.
            chunk_tokens: prompt tokens that the engine can still prefill in this step; a longer prompt goes
                on in the next steps. None is as many as there are.
        """
        return self._memory.noted(self._decide(slot, new_tokens, shares, unheld_tokens, chunk_tokens))

    def _decide(
        self, slot: int, new_tokens: int, shares: bool, unheld_tokens: int, chunk_tokens: int | None
    ) -> Decision:
        decision = Decision(slot, new_tokens, unheld_tokens, shares)
        if not self.everything_fits and slot not in self._proposed:
            return decision.because(Verdict.ENOUGH, Reason.NOT_PROPOSED)
        side = self._line(slot)
        paced = self.paced and side is Side.COMPUTE and not self._idle
        if paced and not self._quota:
            return self._pass_over(decision, Verdict.DEFER, Reason.QUOTA_SPENT)
        if self._limits.may_defer and not self._idle and not self._urgent:
            if not self._memory.may_fit(side, slot):
                return self._pass_over(decision, Verdict.DEFER, Reason.SIDE_WAITS)
            if self._computed_by_another(decision, paced):
                if self.paced or len(self._progress.slots) <= FEW:
                    self._memory.ahead.add(slot)
                return self._pass_over(decision, Verdict.DEFER, Reason.SHARED_PREFIX)
        pages = whole_pages(new_tokens, self._limits.page_size)
        cut = chunk_tokens is not None and pages > chunk_tokens
        if paced and not cut and pages > self._quota:
            # Rather more than the quota than a prompt in chunks that the others would have to make room for.
            cut = paced = not self._traps(slot)
        decision = self._ask_for_room(decision, side, cut)
        return decision._replace(prefill_tokens=self._quota) if decision.admits and paced else decision

    def _traps(self, slot: int) -> bool:
        """Whether a request whose prompt is cut could not end beside somebody who runs."""
        return self._ledger.would_trap(slot, self._running().slots, self._limits.page_size)

    def _line(self, slot: int) -> Side:
        """The side in whose line a request waits: that of the compute side where there is only one line."""
        return Side.COMPUTE if self._one_line else self._ledger.side(slot)

    def _computed_by_another(self, decision: Decision, paced: bool) -> bool:
        """Whether a leader computes what a request would compute, so that it had better wait a step.

        More of a paced side is proposed than the quota. As long as that lasts, whoever waits is replaced, and
        even the shortest prefix is worth it. It is, too, if that of all who would wait is dearer than a pass.
        """
        if not decision.shares:
            return False
        leaders, page = self._memory.leaders, self._limits.page_size
        cached = self._ledger.table.to_prefill(decision.slot) - decision.new_tokens
        shared = leaders.shared(decision.slot, cached) // page * page
        if shared * CACHE_SHARE >= self._ledger.kv_capacity:
            self._memory.readers.add(decision.slot)
        if shared == 0 or shared >= WORTH_A_STEP:
            return shared > 0
        if paced and decision.new_tokens <= self._surplus:
            self._surplus -= decision.new_tokens
            return True
        followers = leaders.followers(self.proposals, decision.slot, cached + shared)
        cost = self._ledger.cost_model
        return float(cost.prefix_comp(followers * shared)) > leaders.lag * cost.weight_time

    def _pass_over(self, decision: Decision, verdict: Verdict, reason: Reason) -> Decision:
        """Leave a request queued and go on with the next, unless too many were passed over."""
        self._passed_over += 1
        enough = self._passed_over >= MAX_PASSED_OVER
        return decision.because(Verdict.ENOUGH if enough else verdict, reason)

    # ------------------------------------------------------------- memory

    def _ask_for_room(self, decision: Decision, side: Side, cut: bool) -> Decision:
        """Admit a request whose turn it is, if KV use stays within the capacity until everyone ends.

        Args:
            cut: its prompt is too long for this step.
        """
        if self._idle:
            return decision.because(Verdict.ADMIT, Reason.NOTHING_RUNS)
        if not self._limits.forecasts:
            return decision.because(Verdict.ADMIT, Reason.NOT_FORECAST)
        if cut and self._traps(decision.slot):
            return self._side_is_full(decision, Reason.NO_ROOM)
        room = self._room = self._room or self._look_ahead(decision.unheld_tokens)
        if room.fits(side, decision.new_tokens, self.tokens_left(decision.slot)):
            return decision.because(Verdict.ADMIT, Reason.FITS)
        if (side is Side.MEMORY or self._visits) and self._worth_preemption(room, decision):
            return decision.because(Verdict.ADMIT_PREEMPTIBLE, Reason.WORTH_PREEMPTION)
        return self._side_is_full(decision, Reason.NO_ROOM)

    def refused(self, decision: Decision) -> Decision:
        """The engine could not allocate a request that was to be admitted: its side waits."""
        return self._memory.noted(self._side_is_full(decision, Reason.ENGINE_REFUSED))

    def _side_is_full(self, decision: Decision, reason: Reason) -> Decision:
        """Nobody behind it on its side is tried until somebody leaves, except shorter ones that fit."""
        if not self._limits.may_defer:
            return decision.because(Verdict.ENOUGH, reason)
        memory, side = self._memory, self._line(decision.slot)
        memory.full_sides.add(side)
        memory.ahead.discard(decision.slot)
        if side is Side.MEMORY:
            memory.longest_fit = 0
            if self._room is not None:
                longest = self._room.longest(decision.new_tokens + decision.unheld_tokens)
                memory.longest_fit = max(longest - self._late, 0)
        if memory.longest_fit == 0 and len(memory.full_sides) == len(Side):
            return decision.because(Verdict.ENOUGH, reason)
        return self._pass_over(decision, Verdict.SIDE_FULL, reason)

    def _worth_preemption(self, room: Room, decision: Decision) -> bool:
        """Whether a request should begin in room that it has to leave to others before it ends.

        Until then its rows share what a step costs however few it has. What it holds when it leaves is
        computed once more. Not where prefill and steps hide behind each other: nothing is fixed there.
        """
        table, new_tokens = self._ledger.table, decision.new_tokens
        known = table.known.item(decision.slot) > 0
        if self._overlaps or not (known or self._memory.may_preempt(int(table.preemptible.sum()))):
            return False
        tokens, cost = room.longest_visit(new_tokens), self._ledger.cost_model
        if tokens <= self._late:
            return False
        saved = self._ledger.speculation.steps(tokens) * cost.weight_time / (room.requests + 1)
        return saved > PREEMPTION_GAIN * float(cost.prefix_comp(new_tokens + tokens))

    def tokens_left(self, slot: int) -> int:
        """Output tokens until a request is expected to give its KV back if it runs from now on."""
        table = self._ledger.table
        return max(table.expected(slot) - table.generated.item(slot), 1) + self._late

    def _look_ahead(self, unheld_tokens: int) -> Room:
        """The room beside everybody who runs, made when it is first asked for.

        Args:
            unheld_tokens: of the request that asks; the engine holds them while it looks.
        """
        return look_ahead(
            self._ledger,
            self._running(),
            used=self._used + unheld_tokens,
            page_size=self._limits.page_size,
            paced=self.paced,
            sure=self.everything_fits or self._urgent,
        )

    def _running(self) -> Progress:
        """Everybody who runs now, those of this step included."""
        if self._admitted:
            slots = np.append(self._progress.slots, np.array(self._admitted, np.int64))
            self._progress, self._admitted = self._ledger.progress_of(slots), []
        return self._progress

    # ------------------------------------------------------------- what happens

    def admitted(self, decision: Decision, *, prefill_tokens: int, shared_tokens: int) -> Side:
        """A request that was to be admitted has begun; returns the side that it counts on.

        Args:
            prefill_tokens: prompt tokens that it prefills in this step.
            shared_tokens: prompt tokens in KV that others who run hold.

        Raises:
            KeyError: it does not wait.
        """
        slot, table, memory = decision.slot, self._ledger.table, self._memory
        line, preemptible = self._line(slot), decision.verdict is Verdict.ADMIT_PREEMPTIBLE
        longest, prompt = memory.longest_fit, table.to_prefill(slot)
        tokens = prompt - shared_tokens
        if line is Side.MEMORY and longest is not None and table.expected(slot) > longest:
            memory.longest_fit = None
        if self._room is not None:
            self._room.add(line, tokens, self.tokens_left(slot), preemptible=preemptible)
        side = self._ledger.admit(slot, shared_tokens, prompt - decision.new_tokens)
        table.preemptible[slot] = preemptible
        memory.admitted(slot)
        if decision.shares:
            memory.leaders.lead(slot)
        self._runs(slot, tokens, prefill_tokens)
        return side

    def chunk_tokens(self, slot: int | None, free_tokens: int) -> int:
        """Prompt tokens that the next chunk of a running prompt may have, whole pages; paced beside others.

        Args:
            slot: the request; None if the planner does not know it.
            free_tokens: KV tokens that can be allocated now.
        """
        alone = not self._began and bool(np.all(self._progress.slots == slot))  # a quota may be below a page
        paced = self.paced and not alone and slot is not None and self._ledger.side(slot) is Side.COMPUTE
        tokens = min(free_tokens, self._quota) if paced else free_tokens
        return max(tokens // self._limits.page_size * self._limits.page_size, 0)

    def continued(self, tokens_left: int, prefill_tokens: int) -> None:
        """A running prompt goes on in this step.

        Args:
            tokens_left: prompt tokens for which it has not taken KV yet.
            prefill_tokens: prompt tokens that it prefills in this step.
        """
        self._runs(None, tokens_left, prefill_tokens)

    def lead(self, slot: int) -> None:
        """A request that runs computes more of its prompt in this step."""
        self._memory.leaders.lead(slot)

    def preempted(self, slots: Sequence[int], used_tokens: int) -> None:
        """The engine has taken KV from running requests; these (n,) still run and hold so many tokens."""
        self._progress = self._ledger.progress_of(np.array(slots, np.int64))
        self._admitted, self._used, self._room, self._idle = [], used_tokens, None, not len(slots)

    def _runs(self, slot: int | None, tokens: int, prefill_tokens: int) -> None:
        """A request takes KV and prefills; prefill of any side is prefill of this step."""
        if slot is not None:
            self._admitted.append(slot)
            self._used += self._ahead
        self._used += tokens
        self._idle, self._began = False, True
        self._quota = max(self._quota - prefill_tokens, 0)

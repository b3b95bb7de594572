"""Begins prefill steps: what each should prefill, and whom it proposes (paper 5.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sglang.srt.blend.core.step.dual_scan import Side
from sglang.srt.blend.core.step.ledger import Ledger, Progress
from sglang.srt.blend.core.step.pacing import Pace, Quota
from sglang.srt.blend.core.step.patience import Patience
from sglang.srt.blend.core.step.step import Running, Step, StepLimits
from sglang.srt.blend.core.step.step_memory import StepMemory

SURPLUS = 0.5
"""Share of the quota that is proposed beyond it, to replace requests that wait for a shared prefix."""


class StepMaker:
    """Makes one `Step` after another.

    Args:
        ledger: who waits and runs.
        pacer: spreads prefill over the steps left; None where passes hold prefill or decode alone.
        leader_lag: steps until a prefix that is computed can be matched; see `PrefixLeaders`.
        patience: admissions per waiting request after which one that was passed over goes first; see
            `Patience`; none by default.

    Attributes:
        memory: what one step leaves to the next.
        pacer: as given.
    """

    def __init__(
        self,
        ledger: Ledger,
        pacer: Pace | None = None,
        leader_lag: int = 1,
        patience: float = float("inf"),
    ) -> None:
        self.memory = StepMemory(ledger.table, leader_lag)
        self._ledger, self.pacer = ledger, pacer
        self._patience = Patience(ledger.table, patience)

    def everything_fits(self, max_proposals: int) -> bool:
        """Whether all that waits fits beside what runs, so that nobody need be delayed; asked once a step.

        What is left of a pool that did not fit goes on as planned to its end where prefill is paced: admitted
        at once, it would leave the longest answers nothing to hide.
        """
        ledger, memory = self._ledger, self.memory
        fits = ledger.table.num_waiting <= max_proposals and ledger.fits_entirely()
        left_over = self.pacer is not None and ledger.scanner.num_waiting > 0
        memory.draining = left_over and (memory.draining or not fits)
        return fits and not memory.draining

    def make(
        self,
        running: Running,
        used_tokens: int,
        limits: StepLimits,
        samples: Sequence[int],
        first: int | None,
        *,
        choose: Callable[[int, Sequence[int]], list[int]] | None,
        urgent: Sequence[int],
        everything_fits: bool,
    ) -> Step:
        """The next step; arguments as of `Planner.begin_step`.

        Args:
            samples: slots that are proposed before the plan's.
        """
        limit = self.memory.begin_step(limits.max_proposals)
        ledger, progress = self._ledger, self._ledger.progress_of(running.slots)
        own = progress.context - ledger.table.shared[progress.slots]
        ledger.fill.note(float(own.sum()), used_tokens, ledger.kv_capacity)
        due: list[int] = []
        if not everything_fits:
            due = list(urgent) or self._patience.due(self.memory.admissions)
        quota = None if everything_fits or due else self._quota(progress)
        surplus = 0 if quota is None else int(SURPLUS * quota.tokens)
        proposals: list[int] = []
        if choose is not None and not everything_fits and not urgent:
            proposals = choose(limit, due)
        elif not everything_fits:
            proposals = due[:limit] or self._proposals(limit, quota, surplus, samples)
            if self.pacer is None and not due and not self.memory.worth_a_pass(len(running.slots), proposals):
                proposals = []
        return Step(
            self._ledger,
            self.memory,
            progress=progress,
            used_tokens=used_tokens,
            limits=limits,
            quota=quota,
            surplus=surplus,
            overlaps=self.pacer is not None and self.pacer.overlapped,
            proposals=proposals,
            first=first,
            everything_fits=everything_fits,
            one_line=everything_fits or bool(due) or ledger.scanner.one_line,
            urgent=bool(urgent),
            visits=ledger.scanner.visits and not (everything_fits or due),
        )

    def propose(
        self,
        limit: int,
        samples: Sequence[int],
        quota: Quota | None = None,
        *,
        longest: int | None = None,
    ) -> list[int]:
        """Requests to admit next, in order: samples first, then both ends under the partition.

        Args:
            limit: how many at most.
            quota: what the compute side may prefill, instead of its share of the partition.
            longest: output tokens that fit beside what runs; see `DualScanner.propose`.
        """
        samples = samples[: max(limit, 0)]
        chosen = set(samples)
        rest = self._ledger.scanner.propose(limit, quota, longest=longest)
        rest = [slot for slot in rest if slot not in chosen]
        # What is known to be long need not wait for what samples will say.
        certain = 0
        while certain < len(rest) and self._certain(rest[certain]):
            certain += 1
        return [*rest[:certain], *samples, *rest[certain:]][:limit]

    def _certain(self, slot: int) -> bool:
        """Whether a request just proposed belongs to the memory side whatever the samples say."""
        return self._ledger.table.known.item(slot) > 0 and self._ledger.side(slot) is Side.MEMORY

    def _proposals(self, limit: int, quota: Quota | None, surplus: int, samples: Sequence[int]) -> list[int]:
        """Whom the plan wants in a step, without those that cannot fit before somebody leaves."""
        memory, ledger = self.memory, self._ledger
        if quota is not None:
            quota = replace(quota, tokens=quota.tokens + surplus)
        proposals = self.propose(limit, samples, quota, longest=memory.longest_fit)
        if memory.full_sides:
            proposals = [s for s in proposals if memory.may_fit(ledger.side(s), s)]
        return proposals

    def _quota(self, progress: Progress) -> Quota | None:
        """What the pacer asks of a step; None while there is no pacer, or nothing runs that it could pace."""
        if self.pacer is None or not len(progress.slots) or not self._ledger.scanner.paced:
            return None
        return self.pacer.quota(
            self._ledger.work_left(progress),
            decode_rows=self._ledger.speculation.draft_tokens * len(progress.slots),
            kv_tokens=float(progress.context.sum()),
        )

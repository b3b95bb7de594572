"""The planner: events in, plans and steps out (paper 5). The one entry to the algorithm.

The server's policy, the batch runner and the simulator all drive this class. It keeps the sorted prompts,
plans over those that wait, and begins the steps that admit them. Nothing here looks at a clock: equal calls
give equal plans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.order.judge import Judge
from sglang.srt.blend.core.order.plan import (
    Plan,
    PlannerOptions,
    admission_order,
)
from sglang.srt.blend.core.order.replanning import CachedPrefixes, Replanning
from sglang.srt.blend.core.step.dual_scan import Side
from sglang.srt.blend.core.step.ledger import Ledger
from sglang.srt.blend.core.step.pacing import Pace
from sglang.srt.blend.core.step.partition import Partition
from sglang.srt.blend.core.step.speculation import Speculation
from sglang.srt.blend.core.step.step import Running, Step, StepLimits
from sglang.srt.blend.core.step.step_maker import StepMaker
from sglang.srt.blend.core.step.verdict import Reason

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PlannerState:
    """The planner's numbers at one moment.

    Attributes:
        root_density: Comp / Mem of what waits in the plan, with its sharing; None if nothing does.
        pool_density: the same of the largest plan so far; None before the first.
        partition: KV tokens planned for each side; nothing while nothing of the plan waits.
        used: KV tokens that running requests count for on each side.
        sharing_possible: share of the prompt tokens that need not be computed, in the largest plan so far.
        waiting: requests.
        replans: plans made.
        reasons: how often each reason was given, by its name.
    """

    root_density: float | None
    pool_density: float | None
    partition: Partition
    used: Partition
    sharing_possible: float
    waiting: int
    replans: int
    reasons: dict[str, int]


class Planner:
    """Plans the admission of pending requests, and decides its steps.

    Args:
        kv_capacity: KV tokens that requests may hold together.
        seed: of the sampling.
        pacer: spreads prefill over the steps left; None where passes hold prefill or decode alone.
        leader_lag: steps until a prefix that is computed can be matched; see `PrefixLeaders`.
        speculation: what a decoding step yields; one token of each request by default.
        judge: takes another order than that of density where it ends sooner; none by default.

    Attributes:
        ledger: who waits and runs, and what each counts for.
        table: the ledger's table, the one owner of request state; pool: the same requests, sorted.
    """

    def __init__(
        self,
        cost_model: CostModel,
        *,
        kv_capacity: int,
        options: PlannerOptions | None = None,
        seed: int = 0,
        pacer: Pace | None = None,
        leader_lag: int = 1,
        speculation: Speculation | None = None,
        judge: Judge | None = None,
    ) -> None:
        if kv_capacity <= 0:
            raise ValueError(f"kv_capacity must be positive, got {kv_capacity}")
        self.cost_model, self.kv_capacity = cost_model, kv_capacity
        self.options = options or PlannerOptions()
        self.ledger = Ledger(cost_model, kv_capacity, speculation)
        self.table, self.speculation = self.ledger.table, self.ledger.speculation
        self._steps = StepMaker(self.ledger, pacer, leader_lag, self.options.patience)
        self._plans = Replanning(self.ledger, self.options, seed, judge)
        self.pool = self._plans.pool

    # ---------------------------------------------------------------- pool

    def add(
        self,
        tokens: NDArray[np.int32],
        offsets: Ints,
        *,
        max_new_tokens: NDArray[np.integer],
        known_output: NDArray[np.integer] | None = None,
        expected_output: NDArray[np.integer] | None = None,
        extra_compute: NDArray[np.float64] | None = None,
        namespace: NDArray[np.integer] | None = None,
    ) -> Ints:
        """Requests arrive.

        Args:
            tokens: int32, all prompts back to back; request i is tokens[offsets[i]:offsets[i + 1]].
            offsets: int64 (n + 1,).
            max_new_tokens: (n,) caps the output.
            known_output: (n,) output tokens when the request fixes them, 0 when they are unknown.
            expected_output: (n,) output tokens that earlier runs let expect, 0 where there were none.
            extra_compute: (n,) seconds beside the decoder's own, such as a vision encoder.
            namespace: (n,) prompts of different namespaces share nothing; 0 by default.

        Returns:
            Slots, int64 (n,): small integers, reused once a request is gone.
        """
        slots = self.table.put(
            tokens,
            offsets,
            max_new_tokens=max_new_tokens,
            known_output=known_output,
            expected_output=expected_output,
            extra_compute=extra_compute,
            namespace=namespace,
        )
        self.pool.arrive(slots)
        self._plans.arrived(len(slots))
        return slots

    def sees_cache(self, cached: CachedPrefixes) -> None:
        """What the cache holds of waiting prompts is known from now on, beside what requests hold who run.

        Args:
            cached: asked by plans while a stream flows; it sees the prompts as they were sorted last.
        """
        self._plans.cached = cached

    def remove(self, slot: int) -> None:
        """A request leaves for good: aborted while waiting or running, or finished.

        One that was observed is remembered for a while, so that its answer informs its neighbours.

        Raises:
            KeyError: it has left already.
        """
        table = self.table
        self.ledger.leave(slot)
        self._steps.memory.somebody_left()
        if table.sampled.item(slot):
            self._plans.samples.left()
        self.pool.leave(slot)
        if self.pool.crowded:
            self.refresh()

    def observe(self, slot: int, output_length: int) -> None:
        """A request has finished with `output_length` tokens; call `remove` after it."""
        self.table.observed[slot] = output_length
        self._plans.answered()

    def admit(self, slot: int, shared_tokens: int = 0) -> Side:
        """A waiting request starts running outside of a step; see `Ledger.admit`, and `Step.admitted`."""
        return self.ledger.admit(slot, shared_tokens)

    def give_back(self, slot: int) -> None:
        """A running request has given its KV back and will be retracted, or removed.

        From now on it counts among those that need its prompt, so that evictions of the same step spare it.
        """
        self.table.preemptible[slot] = False
        self.ledger.index.set_waiting(slot, True)

    def retract(self, slot: int, generated: int | None = None) -> None:
        """A running request goes back to the queue, its KV lost; KeyError if it does not run.

        Args:
            generated: output tokens so far, if they are not known yet.
        """
        if generated is not None:
            self.ledger.progress(np.array([slot]), np.array([generated]))
        self.ledger.retract(slot)
        self._steps.memory.retractions += 1
        self._steps.memory.somebody_left()
        self._plans.changed(1)

    # ---------------------------------------------------------------- plan

    @property
    def stale(self) -> bool:
        """Whether a new plan pays: enough arrivals, or enough answers to trust them more."""
        return self._plans.stale

    @property
    def judge(self) -> Judge | None:
        """Compares orders; None where there is only that of density."""
        return self._plans.judge

    @property
    def replans(self) -> int:
        """Plans made."""
        return self._plans.made

    def refresh(self) -> None:
        """Take arrivals and departures into the sorted prompts, so that the index knows all requests."""
        self._plans.refresh()

    def replan(self) -> None:
        """Estimate, sort, split, merge and load the scanner with everything that waits."""
        self._plans.now()
        self._steps.memory.plan_changed()

    def plan(self) -> Plan:
        """The admission order of all that waits, window after window, as if every estimate were exact."""
        self.replan()
        return admission_order(self._plans.windows(), self.kv_capacity, self._plans.samples.waiting())

    def foresee(self, judge: Judge) -> float:
        """Modelled seconds until all that runs and waits in the last plan has ended, as a judge sees it."""
        return self._plans.foresee(judge)

    @property
    def order(self) -> Ints:
        """Slots of the last plan that are still in the pool, from compute- to memory-intensive."""
        if self._plans.window is None:
            return np.zeros(0, np.int64)
        slots = self._plans.window.slots
        return np.asarray(slots[self.table.plan_position[slots] == np.arange(len(slots))])

    @property
    def sharing_ratio(self) -> float:
        """Share of the planned prompts' tokens that need not be computed."""
        return self._plans.sharing_ratio

    @property
    def state(self) -> PlannerState:
        """The planner's numbers now."""
        scanner = self.ledger.scanner
        planned = scanner.num_waiting > 0
        return PlannerState(
            root_density=scanner.root_density if planned else None,
            pool_density=self._plans.density if self.replans else None,
            partition=scanner.partition if planned else Partition(0, 0),
            used=scanner.used,
            sharing_possible=self._plans.sharing,
            waiting=self.table.num_waiting,
            replans=self.replans,
            reasons={reason.value: self._steps.memory.reasons[reason] for reason in Reason},
        )

    # ---------------------------------------------------------------- step

    def begin_step(
        self,
        running: Running,
        used_tokens: int,
        limits: StepLimits,
        *,
        first: int | None = None,
        choose: Callable[[int, Sequence[int]], list[int]] | None = None,
        urgent: Sequence[int] = (),
    ) -> Step:
        """A prefill step begins: plan again if it pays, and propose whom to admit.

        Args:
            running: the requests that hold KV.
            used_tokens: KV tokens that they hold, those ahead included, shared prefixes counted once.
            limits: of the engine.
            first: slot of the request that is proposed if the plan proposes nobody and nothing runs.
            choose: proposes so many requests instead of the plan, in an order that the plan does not know,
                such as priorities; it is told who is due (see `Patience`).
            urgent: slots of requests that somebody waits for: until none of them waits, only they begin.
        """
        fits = self._steps.everything_fits(limits.max_proposals)
        if self._plans.step(fits):
            self._steps.memory.plan_changed()
        self.ledger.progress(*running)
        samples = self._plans.samples.waiting(limits.max_proposals)
        return self._steps.make(
            running, used_tokens, limits, samples, first, choose=choose, urgent=urgent, everything_fits=fits
        )

    def correct(self, cost_model: CostModel, pacer: Pace | None, judge: Judge | None = None) -> None:
        """The hardware turns out to be another: plan anew, with its costs, its pacer and its judge."""
        self.cost_model = self.ledger.cost_model = cost_model
        self._steps.pacer = pacer
        self._plans.costs_changed(judge)

    def propose(self, limit: int) -> list[int]:
        """Slots to admit next outside of a step, in order; nothing changes."""
        return self._steps.propose(limit, self._plans.samples.waiting(max(limit, 0)))

"""The planner: events in, plans and steps out (paper 5). The one entry to the algorithm.

The server's policy, the batch runner and the simulator all drive this class. It keeps the sorted prompts,
plans over those that wait, and begins the steps that admit them. Nothing here looks at a clock: equal calls
give equal plans.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.order.plan import (
    OrderedWindow,
    Plan,
    PlannerOptions,
    admission_order,
    order_window,
)
from sglang.srt.blend.core.order.samples import Samples
from sglang.srt.blend.core.pool.request_table import UNPLANNED, State
from sglang.srt.blend.core.pool.sorted_pool import SortedPool
from sglang.srt.blend.core.step.dual_scan import Side
from sglang.srt.blend.core.step.ledger import Ledger
from sglang.srt.blend.core.step.pacing import Pace
from sglang.srt.blend.core.step.partition import Partition
from sglang.srt.blend.core.step.speculation import Speculation
from sglang.srt.blend.core.step.step import Running, Step, StepLimits
from sglang.srt.blend.core.step.step_maker import StepMaker
from sglang.srt.blend.core.step.verdict import Reason

Ints = NDArray[np.int64]

# Steps after which what runs is looked at again for what it tells about lengths: so many at first, then so
# many times as many as at the last look.
_FIRST_LOOK, _LOOK_AGAIN = 16, 1.5


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

    Attributes:
        ledger: who waits and runs, and what each counts for.
        table: the ledger's table, the one owner of request state; pool: the same requests, sorted.
        replans: plans made.
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
    ) -> None:
        if kv_capacity <= 0:
            raise ValueError(f"kv_capacity must be positive, got {kv_capacity}")
        self.cost_model, self.kv_capacity = cost_model, kv_capacity
        self.options = options or PlannerOptions()
        self.ledger = Ledger(cost_model, kv_capacity, speculation)
        self.table, self.speculation = self.ledger.table, self.ledger.speculation
        self.replans = self._completions = self._unplanned = 0
        self._steps = StepMaker(self.ledger, pacer, leader_lag, self.options.patience)
        self.pool = SortedPool(self.table, self.options.memory)
        self._samples = Samples(self.table, np.random.default_rng(seed))
        self._window: OrderedWindow | None = None
        self._steps_begun, self._looked_at, self._open = 0, 0, False  # see `stale`
        self._largest_plan = 0  # requests
        self._largest_sharing = self._largest_density = 0.0

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
        self._unplanned += len(slots)
        return slots

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
            self._samples.left()
        self.pool.leave(slot)
        if self.pool.crowded:
            self.refresh()

    def observe(self, slot: int, output_length: int) -> None:
        """A request has finished with `output_length` tokens; call `remove` after it."""
        self.table.observed[slot] = output_length
        self._completions += 1

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
        self._unplanned += 1

    # ---------------------------------------------------------------- plan

    @property
    def stale(self) -> bool:
        """Whether a new plan pays: enough arrivals, or enough answers to trust them more."""
        waiting = self.table.num_waiting
        if waiting == 0:
            return False
        if self._unplanned * 64 >= waiting or self._samples.answered:
            return True
        if self._completions >= max(self.options.replan_interval, waiting // 20):
            return True
        if self._open and self._steps_begun >= _LOOK_AGAIN * self._looked_at + _FIRST_LOOK:
            return True  # answers that run tell more, too
        return self.ledger.scanner.num_waiting == 0

    def refresh(self) -> None:
        """Take arrivals and departures into the sorted prompts, so that the index knows all requests."""
        if self.pool.refresh():
            self._samples.drop_absent()
            self._rebuild_index()

    def replan(self) -> None:
        """Estimate, sort, split, merge and load the scanner with everything that waits."""
        table = self.table
        self.refresh()
        self.replans += 1
        if self._unplanned * 64 >= table.num_waiting:
            self._steps_begun = 0  # of newcomers most is learned at first
        self._looked_at = self._steps_begun
        self._completions = self._unplanned = 0
        self._samples.answered = False
        self._learn_lengths()
        self._window = window = self._order_waiting(self._planned())
        table.plan_position.fill(UNPLANNED)
        table.plan_position[window.slots] = np.arange(len(window.slots))
        table.shared[window.slots] = window.density.shared
        table.forget_waiting()
        table.count_waiting(self.pool.prompts.slots[table.state[self.pool.prompts.slots] == State.WAITING])
        self.ledger.scanner.load(window.scan, self.ledger.density_left(), self.speculation.accept_length)
        self._rebuild_index()
        self._steps.memory.somebody_left()
        if table.num_waiting >= self._largest_plan:
            self._largest_plan = table.num_waiting
            self._largest_sharing = self.sharing_ratio
            self._largest_density = self.ledger.scanner.root_density

    def plan(self) -> Plan:
        """The admission order of all that waits, window after window, as if every estimate were exact."""
        self.replan()
        assert self._window is not None
        ordered = [self._window]
        if self.options.window:
            rest = (self.table.state[self.pool.prompts.slots] == State.WAITING) & ~self._planned()
            windows = self.table.sequence[self.pool.prompts.slots] // self.options.window
            ordered += [self._order_waiting(rest & (windows == w)) for w in np.unique(windows[rest])]
        return admission_order(ordered, self.kv_capacity, self._samples.waiting())

    @property
    def order(self) -> Ints:
        """Slots of the last plan that are still in the pool, from compute- to memory-intensive."""
        if self._window is None:
            return np.zeros(0, np.int64)
        slots = self._window.slots
        return np.asarray(slots[self.table.plan_position[slots] == np.arange(len(slots))])

    @property
    def sharing_ratio(self) -> float:
        """Share of the planned prompts' tokens that need not be computed."""
        if self._window is None or not self._window.prompt:
            return 0.0
        return self._window.density.shared_tokens / self._window.prompt

    @property
    def state(self) -> PlannerState:
        """The planner's numbers now."""
        scanner = self.ledger.scanner
        planned = scanner.num_waiting > 0
        return PlannerState(
            root_density=scanner.root_density if planned else None,
            pool_density=self._largest_density if self.replans else None,
            partition=scanner.partition if planned else Partition(0, 0),
            used=scanner.used,
            sharing_possible=self._largest_sharing,
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
        self._steps_begun += 1
        fits = self._steps.everything_fits(limits.max_proposals)
        # Where everything fits nobody follows a plan, but what it says about a pool that has grown is shown.
        grown = self.table.num_waiting > 2 * self._largest_plan
        if grown if fits else self.stale:
            self.replan()
        self.ledger.progress(*running)
        samples = self._samples.waiting(limits.max_proposals)
        return self._steps.make(
            running, used_tokens, limits, samples, first, choose=choose, urgent=urgent, everything_fits=fits
        )

    def correct(self, cost_model: CostModel, pacer: Pace | None) -> None:
        """The hardware turns out to be another: plan anew, with its costs and its pacer."""
        self.cost_model = self.ledger.cost_model = cost_model
        self._steps.pacer, self._completions = pacer, sys.maxsize  # see `stale`

    def propose(self, limit: int) -> list[int]:
        """Slots to admit next outside of a step, in order; nothing changes."""
        return self._steps.propose(limit, self._samples.waiting(max(limit, 0)))

    # ---------------------------------------------------------------- inside

    def _rebuild_index(self) -> None:
        table, order = self.table, self.pool.prompts.slots
        prompt, output = table.store.length[order], table.estimate[order]
        self.ledger.index.rebuild(
            table.store,
            table.space,
            order,
            waiting=table.state[order] == State.WAITING,
            comp=self.cost_model.comp(prompt, output) + table.extra[order],
            mem=self.cost_model.mem(prompt, output),
            position=table.plan_position[order],
        )

    def _learn_lengths(self) -> None:
        """Learn from every answer, and expect accordingly of what waits and runs; choose new samples."""
        table, prompts = self.table, self.pool.prompts
        unknown = prompts.subset(table.known[prompts.slots] == 0)
        table.learn(unknown)
        self.ledger.look_again()
        self._open = bool((table.state[unknown.slots] == State.WAITING).any())
        planned = np.zeros(len(table.state), np.bool_)
        planned[prompts.slots[self._planned()]] = True
        self._samples.choose(unknown, planned[unknown.slots], self.options.sample_fraction, self.kv_capacity)

    def _planned(self) -> NDArray[np.bool_]:
        """Which sorted requests wait in the present window: the oldest that still has some waiting."""
        waits = self.table.state[self.pool.prompts.slots] == State.WAITING
        if self.options.window and waits.any():
            window = self.table.sequence[self.pool.prompts.slots] // self.options.window
            waits &= window == window[waits].min()
        return np.asarray(waits)

    def _order_waiting(self, planned: NDArray[np.bool_]) -> OrderedWindow:
        """Density order of the planned ones of the sorted requests."""
        prompts, table = self.pool.prompts, self.table
        return order_window(prompts, planned, table, self.cost_model, self.options, self.kv_capacity)

"""The planner: events in, plans and steps out (paper 5). The one entry to the algorithm.

The server's policy, the batch runner and the simulator all drive this class. It keeps the sorted prompts,
plans over those that wait, and begins the steps that admit them. Nothing here looks at a clock: equal calls
give equal plans.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.order.output_length import choose_samples, estimate_outputs
from sglang.srt.blend.core.order.plan import Blend, Plan, PlannerOptions, blend_requests
from sglang.srt.blend.core.pool import prefix_sort
from sglang.srt.blend.core.pool.prefix_tree import build_tree, densities
from sglang.srt.blend.core.pool.request_table import UNPLANNED, State
from sglang.srt.blend.core.step.dual_scan import Side, scan_to_the_end
from sglang.srt.blend.core.step.ledger import Ledger
from sglang.srt.blend.core.step.pacing import Pacer, Quota
from sglang.srt.blend.core.step.partition import Partition
from sglang.srt.blend.core.step.step import SURPLUS, Running, Step, StepLimits
from sglang.srt.blend.core.step.step_memory import StepMemory
from sglang.srt.blend.core.step.verdict import Reason

Ints = NDArray[np.int64]

# Answers capped at so few tokens need no sample: whatever their length is, it changes little, while the
# prefix of a sample may have left the cache when its relatives' turn comes.
_SHORT_CAP = 16
# Departures after which the sorted prompts are compacted even if nobody asks for a plan.
_MAX_GONE = 4096


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

    Attributes:
        ledger: who waits and runs, and what each counts for.
        table: the ledger's table, the one owner of request state.
        replans: plans made.
    """

    def __init__(
        self,
        cost_model: CostModel,
        *,
        kv_capacity: int,
        options: PlannerOptions | None = None,
        seed: int = 0,
        pacer: Pacer | None = None,
        leader_lag: int = 1,
    ) -> None:
        if kv_capacity <= 0:
            raise ValueError(f"kv_capacity must be positive, got {kv_capacity}")
        self.cost_model = cost_model
        self.kv_capacity = kv_capacity
        self.options = options or PlannerOptions()
        self.ledger = Ledger(cost_model, kv_capacity)
        self.table = self.ledger.table
        self.replans = 0
        self._pacer = pacer
        self._memory = StepMemory(leader_lag)
        self._rng = np.random.default_rng(seed)
        self._order: Ints = np.zeros(0, np.int64)  # sorted slots: waiting, running and remembered
        self._lcp: Ints = np.zeros(0, np.int64)
        self._arrivals: list[Ints] = []
        self._gone: list[int] = []  # to leave the sorted order at the next refresh
        self._remembered: deque[int] = deque()
        self._samples: deque[int] = deque()
        self._open_samples = 0
        self._samples_answered = False
        self._blend: Blend | None = None
        self._completions = 0
        self._unplanned = 0
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
        extra_compute: NDArray[np.float64] | None = None,
        namespace: NDArray[np.integer] | None = None,
    ) -> Ints:
        """Requests arrive.

        Args:
            tokens: int32, all prompts back to back; request i is tokens[offsets[i]:offsets[i + 1]].
            offsets: int64 (n + 1,).
            max_new_tokens: (n,) caps the output.
            known_output: (n,) output tokens when the request fixes them, 0 when they are unknown.
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
            extra_compute=extra_compute,
            namespace=namespace,
        )
        self._arrivals.append(slots)
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
        self._memory.somebody_left()
        if table.sampled.item(slot):
            self._open_samples -= 1
            self._samples_answered |= self._open_samples == 0
        if table.observed.item(slot) >= 0 and self.options.memory:
            table.state[slot] = State.FINISHED
            self._remembered.append(slot)
            if len(self._remembered) > self.options.memory:
                self._forget(self._remembered.popleft())
        else:
            self._forget(slot)
        if len(self._gone) >= max(_MAX_GONE, len(self._order) // 2):
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
            self.progress(np.array([slot]), np.array([generated]))
        self.ledger.retract(slot)
        self._memory.somebody_left()
        self._unplanned += 1

    def progress(self, slots: Ints, generated: Ints) -> None:
        """Running requests (n,) have generated so many tokens (n,); see `Ledger.progress`."""
        self.ledger.progress(slots, generated)

    # ---------------------------------------------------------------- plan

    @property
    def stale(self) -> bool:
        """Whether a new plan pays: enough arrivals, or enough answers to trust them more."""
        waiting = self.table.num_waiting
        if waiting == 0:
            return False
        if self._unplanned * 64 >= waiting or self._samples_answered:
            return True
        if self._completions >= max(self.options.replan_interval, waiting // 20):
            return True
        return self.ledger.scanner.num_waiting == 0

    def refresh(self) -> None:
        """Take arrivals and departures into the sorted order, so that the index knows all requests."""
        if not self._arrivals and not self._gone:
            return
        table, gone = self.table, self._gone
        store = table.store
        if gone:
            keep = np.ones(store.num_slots, np.bool_)
            keep[gone] = False
            self._order, self._lcp = prefix_sort.remove_sorted(self._order, self._lcp, keep[self._order])
        arrivals = np.concatenate([np.zeros(0, np.int64), *self._arrivals])
        arrivals = arrivals[table.state[arrivals] != State.ABSENT]
        if len(arrivals):
            arrivals = prefix_sort.sort_prompts(store.data, store.start, store.length, table.space, arrivals)
            if len(self._order):
                self._order, self._lcp = prefix_sort.merge_sorted(
                    store.data, store.start, store.length, table.space, self._order, self._lcp, arrivals
                )
            else:
                self._order = arrivals
                self._lcp = prefix_sort.neighbour_prefixes(
                    store.data, store.start, store.length, table.space, arrivals
                )
        self._arrivals, self._gone = [], []
        if gone:
            # From here on their slots may belong to others.
            self._samples = deque(s for s in self._samples if table.state[s] != State.ABSENT)
            store.drop(np.array(gone, np.int64))
        self._rebuild_index()

    def replan(self) -> None:
        """Estimate, sort, split, merge and load the scanner with everything that waits."""
        table = self.table
        self.refresh()
        self.replans += 1
        self._completions = self._unplanned = 0
        self._samples_answered = False
        self._estimate_outputs()
        self._blend = blend = self._blend_waiting(self._planned())
        table.plan_position.fill(UNPLANNED)
        table.plan_position[blend.slots] = np.arange(len(blend.slots))
        table.shared[blend.slots] = blend.density.shared
        table.forget_waiting()
        table.count_waiting(self._order[table.state[self._order] == State.WAITING])
        self.ledger.scanner.load(blend.scan, self._density_left())
        self._rebuild_index()
        self._memory.somebody_left()
        if table.num_waiting >= self._largest_plan:
            self._largest_plan = table.num_waiting
            self._largest_sharing = self.sharing_ratio
            self._largest_density = self.ledger.scanner.root_density

    def plan(self) -> Plan:
        """The admission order of all that waits, window after window, as if every estimate were exact."""
        self.replan()
        assert self._blend is not None
        blends = [self._blend]
        if self.options.window:
            rest = (self.table.state[self._order] == State.WAITING) & ~self._planned()
            windows = self.table.sequence[self._order] // self.options.window
            blends += [self._blend_waiting(rest & (windows == w)) for w in np.unique(windows[rest])]
        slots, sides, steps = [], [], []
        begin = 0.0
        for blend in blends:
            one = scan_to_the_end(blend.scan, self.kv_capacity)
            slots.append(one[0])
            sides.append(one[1])
            steps.append(begin + one[2])
            begin = float(steps[-1][-1]) if len(one[0]) else begin
        every = np.concatenate(slots)
        reorder = np.argsort(~np.isin(every, np.array(self._samples, np.int64)), kind="stable")
        comp = sum(float(blend.scan.comp.sum()) for blend in blends)
        mem = sum(float(blend.scan.mem.sum()) for blend in blends)
        return Plan(
            slots=every[reorder],
            sides=np.concatenate(sides)[reorder],
            steps=np.concatenate(steps)[reorder],
            density=float(densities(comp, mem)),
            shared_tokens=sum(blend.density.shared_tokens for blend in blends),
            possible_tokens=sum(blend.possible for blend in blends),
            splits=sum(blend.density.splits for blend in blends),
        )

    @property
    def order(self) -> Ints:
        """Slots of the last plan that are still in the pool, from compute- to memory-intensive."""
        if self._blend is None:
            return np.zeros(0, np.int64)
        slots = self._blend.slots
        return np.asarray(slots[self.table.plan_position[slots] == np.arange(len(slots))])

    @property
    def sharing_ratio(self) -> float:
        """Share of the planned prompts' tokens that need not be computed."""
        if self._blend is None or not self._blend.prompt:
            return 0.0
        return self._blend.density.shared_tokens / self._blend.prompt

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
            reasons={reason.value: self._memory.reasons[reason] for reason in Reason},
        )

    # ---------------------------------------------------------------- step

    def begin_step(
        self,
        running: Running,
        used_tokens: int,
        limits: StepLimits,
        *,
        first: int | None = None,
        choose: Callable[[int], list[int]] | None = None,
    ) -> Step:
        """A prefill step begins: plan again if it pays, and propose whom to admit.

        Args:
            running: the requests that hold KV.
            used_tokens: KV tokens that they hold, shared prefixes counted once.
            limits: of the engine.
            first: slot of the request that is proposed if the plan proposes nobody and nothing runs.
            choose: proposes so many requests instead of the plan, in an order that the plan does not know,
                such as priorities.
        """
        memory = self._memory
        max_proposals = memory.begin_step(limits.max_proposals)
        everything_fits = self._plan_if_it_pays(limits.max_proposals)
        self.progress(*running)
        quota = None if everything_fits else self._quota(running.slots)
        proposals: list[int] = []
        if not everything_fits:
            proposals = choose(max_proposals) if choose else self._proposals(max_proposals, quota)
        return Step(
            self.ledger,
            memory,
            running=running.slots,
            used_tokens=used_tokens,
            limits=limits,
            quota=quota,
            overlaps=self._pacer is not None and self._pacer.overlapped,
            proposals=proposals,
            first=first,
            everything_fits=everything_fits,
        )

    def _proposals(self, limit: int, quota: Quota | None) -> list[int]:
        """Whom the plan wants in a step, without those that cannot fit before somebody leaves."""
        memory = self._memory
        if quota is not None:
            quota = replace(quota, tokens=quota.tokens + int(SURPLUS * quota.tokens))
        proposals = self.propose(limit, quota, longest=memory.longest_fit)
        if memory.full_sides:
            proposals = [slot for slot in proposals if self._may_fit(slot)]
        return proposals

    def _plan_if_it_pays(self, max_proposals: int) -> bool:
        """Make a new plan if it pays; returns whether everything that waits fits, so that none is needed.

        Where everything fits, nobody follows a plan. One is made all the same when more waits than twice
        the largest plan has seen, for what it says about the pool. What is left of a pool that did not fit
        goes on as planned to its end where prefill is paced: admitted at once, it would leave the longest
        answers nothing to hide.
        """
        memory, waiting = self._memory, self.table.num_waiting
        fits = waiting <= max_proposals and self.ledger.fits_entirely()
        paced = self._pacer is not None
        memory.draining = paced and self.ledger.scanner.num_waiting > 0 and (memory.draining or not fits)
        everything_fits = fits and not memory.draining
        if waiting > 2 * self._largest_plan if everything_fits else self.stale:
            self.replan()
        return everything_fits

    def _quota(self, running: Ints) -> Quota | None:
        """What the pacer asks of a step; None while there is no pacer, or nothing runs that it could pace."""
        if self._pacer is None or not len(running):
            return None
        table = self.table
        generated = table.generated[running]
        context = table.store.length[running] + generated
        remaining = np.maximum(table.expected_many(running) - generated, 1)
        return self._pacer.quota(
            self.ledger.work_left(remaining, context),
            decode_rows=len(running),
            kv_tokens=float(context.sum()),
        )

    def _may_fit(self, slot: int) -> bool:
        return self._memory.may_fit(self.ledger.side(slot), self.table.expected(slot))

    def propose(self, limit: int, quota: Quota | None = None, *, longest: int | None = None) -> list[int]:
        """Requests to admit next, in order: samples first, then both ends under the partition.

        Args:
            quota: what the compute side may prefill, instead of its share of the partition.
            longest: output tokens that fit beside what runs; see `DualScanner.propose`.
        """
        while self._samples and self.table.state[self._samples[0]] != State.WAITING:
            self._samples.popleft()
        waiting = (s for s in self._samples if self.table.state[s] == State.WAITING)
        samples = list(islice(waiting, max(limit, 0)))
        chosen = set(samples)
        rest = self.ledger.scanner.propose(limit, quota, longest=longest)
        rest = [slot for slot in rest if slot not in chosen]
        # What is known to be long need not wait for what samples will say.
        certain = 0
        while certain < len(rest) and self._certain(rest[certain]):
            certain += 1
        return (rest[:certain] + samples + rest[certain:])[:limit]

    def _certain(self, slot: int) -> bool:
        """Whether a request just proposed belongs to the memory side whatever the samples say."""
        return self.table.known.item(slot) > 0 and self.ledger.side(slot) is Side.MEMORY

    # ---------------------------------------------------------------- inside

    def _density_left(self) -> float:
        """Comp / Mem of what running and waiting requests will still do."""
        table = self.table
        running = np.flatnonzero(table.state == State.RUNNING)
        generated = table.generated[running]
        remaining = np.maximum(table.expected_many(running) - generated, 0)
        return self.ledger.work_left(remaining, table.store.length[running] + generated).density

    def _forget(self, slot: int) -> None:
        self.table.state[slot] = State.ABSENT
        self._gone.append(slot)

    def _rebuild_index(self) -> None:
        table, order = self.table, self._order
        prompt, output = table.store.length[order], table.estimate[order]
        self.ledger.index.rebuild(
            table.store,
            table.space,
            order,
            waiting=table.state[order] == State.WAITING,
            comp=self.cost_model.comp(prompt, output) + table.extra[order],
            mem=self.cost_model.mem(prompt, output),
            place=table.plan_position[order],
        )

    def _estimate_outputs(self) -> None:
        """Estimate all that waits from the answers in its neighbourhood; choose new samples."""
        table, order = self.table, self._order
        tree = build_tree(
            self._lcp, table.store.length[order], np.maximum(table.estimate[order], 1), self.cost_model
        )
        estimate = estimate_outputs(
            lo=tree.lo,
            hi=tree.hi,
            parent=tree.parent,
            request_parent=tree.request_parent,
            observed=table.observed[order],
            known=table.known[order],
            max_new_tokens=table.max_new[order],
        )
        waits = table.state[order] == State.WAITING
        waiting = order[waits]
        table.estimate[waiting] = np.maximum(
            estimate[waits], np.minimum(table.generated[waiting] + 1, table.max_new[waiting])
        )
        unknown = self._planned() & (table.known[order] == 0) & (table.max_new[order] > _SHORT_CAP)
        covered = table.sampled[order] | (table.observed[order] >= 0)
        picks = order[
            choose_samples(
                lo=tree.lo,
                hi=tree.hi,
                unknown=unknown & ~covered,
                covered=covered,
                fraction=self.options.sample_fraction,
                rng=self._rng,
            )
        ]
        table.sampled[picks] = True
        self._open_samples += len(picks)
        self._samples.extend(picks.tolist())

    def _planned(self) -> NDArray[np.bool_]:
        """Which sorted requests wait in the present window: the oldest that still has some waiting."""
        waits = self.table.state[self._order] == State.WAITING
        if self.options.window and waits.any():
            window = self.table.sequence[self._order] // self.options.window
            waits &= window == window[waits].min()
        return np.asarray(waits)

    def _blend_waiting(self, planned: NDArray[np.bool_]) -> Blend:
        """Density order of the planned ones of the sorted requests."""
        slots, lcp = prefix_sort.remove_sorted(self._order, self._lcp, planned)
        return blend_requests(slots, lcp, self.table, self.cost_model, self.options, self.kv_capacity)

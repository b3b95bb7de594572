"""The planner: a pool of requests in, admission order out (paper 5). The one entry to the algorithm.

The server's policy, the batch runner, the simulator and the sharder all drive this class. It keeps
the sorted prompts, plans over those that wait, and keeps the scanner's accounts of those that run.
Nothing here looks at a clock: equal calls give equal plans.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core import prefix_sort
from sglang.srt.blend.core.cost_model import CostModel
from sglang.srt.blend.core.dual_scan import (
    UNLIMITED,
    DualScanner,
    Partition,
    ScanOrder,
    Side,
    scan_to_the_end,
    share_of_one,
    share_weight,
)
from sglang.srt.blend.core.ordering import DensityOrder, order_by_density
from sglang.srt.blend.core.output_length import PRIOR_OUTPUT_TOKENS, choose_samples, estimate_outputs
from sglang.srt.blend.core.pacing import Quota, WorkLeft
from sglang.srt.blend.core.pending_index import NEVER, PendingIndex
from sglang.srt.blend.core.prefix_tree import build_tree, densities
from sglang.srt.blend.core.token_store import TokenStore

Ints = NDArray[np.int64]

# Plan position of a request that came after the plan: used, but later than any planned one.
_UNPLANNED = NEVER - 1
# Answers capped at so few tokens need no sample: whatever their length is, it changes little, while the
# prefix of a sample may have left the cache when its relatives' turn comes.
_SHORT_CAP = 16
# Share of exponential lengths above their mean.
_OUTLIVES = float(np.exp(-1.0))
# Departures after which the sorted prompts are compacted even if nobody asks for a plan.
_MAX_GONE = 4096


class _State(IntEnum):
    ABSENT = 0
    WAITING = 1
    RUNNING = 2
    FINISHED = 3  # gone, but its answer still informs the estimates of its neighbours


@dataclass(frozen=True, slots=True)
class PlannerOptions:
    """How to plan.

    Attributes:
        sample_fraction: share of requests of unknown length to run first, in [0, 1].
        sharing_budget: share of the depth-first sharing that node splits must keep, in [0, 1].
        replan_interval: completions after which a new plan pays.
        window: plan only among this many requests in order of arrival, draining one window before the
            next begins (paper 7, deadlines); 0 is the whole pool.
        group_fraction: share of the KV capacity up to which neighbours with a common prefix are one
            schedulable group.
        split: False leaves the tree whole (for ablation).
        memory: finished requests whose answers are remembered for estimates.
    """

    sample_fraction: float = 0.01
    sharing_budget: float = 0.99
    replan_interval: int = 256
    window: int = 0
    group_fraction: float = 1 / 16
    split: bool = True
    memory: int = 8192

    def __post_init__(self) -> None:
        for name in ("sample_fraction", "sharing_budget", "group_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.replan_interval < 1:
            raise ValueError(f"replan_interval must be at least 1, got {self.replan_interval}")
        if self.window < 0 or self.memory < 0:
            raise ValueError("window and memory must not be negative")


@dataclass(frozen=True, slots=True)
class Plan:
    """The admission order of a whole pool.

    Attributes:
        slots: (n,) requests in order of admission.
        sides: (n,) `Side` from which each is admitted.
        steps: (n,) decoding step of admission if estimates hold, dimensionless.
        density: of the pool with the sharing of this plan.
        shared_tokens: prompt tokens that the density order shares; possible_tokens: that a depth-first
            walk shares.
        splits: subtrees moved.
    """

    slots: Ints
    sides: Ints
    steps: NDArray[np.float64]
    density: float
    shared_tokens: int
    possible_tokens: int
    splits: int


@dataclass(frozen=True, slots=True)
class _Blend:
    """One window in density order.

    Attributes:
        slots: (n,) requests; density, scan: what the scanner walks, in the same order.
        prompt: tokens of all its prompts; possible: those that a depth-first walk shares.
    """

    slots: Ints
    density: DensityOrder
    scan: ScanOrder
    prompt: int
    possible: int


class Planner:
    """Plans admission of pending requests.

    Args:
        kv_capacity: KV tokens that requests may hold together.
        seed: of the sampling.
    """

    def __init__(
        self,
        cost_model: CostModel,
        *,
        kv_capacity: int,
        options: PlannerOptions | None = None,
        seed: int = 0,
    ) -> None:
        if kv_capacity <= 0:
            raise ValueError(f"kv_capacity must be positive, got {kv_capacity}")
        self.cost_model = cost_model
        self.kv_capacity = kv_capacity
        self.options = options or PlannerOptions()
        self.index = PendingIndex()
        self.scanner = DualScanner(kv_capacity)
        self.replans = 0
        self._rng = np.random.default_rng(seed)
        self._store = TokenStore()
        self._order: Ints = np.zeros(0, np.int64)  # sorted slots: waiting, running and remembered
        self._lcp: Ints = np.zeros(0, np.int64)
        self._arrivals: list[Ints] = []
        self._gone: list[int] = []  # to leave the sorted order at the next refresh
        self._remembered: deque[int] = deque()
        self._samples: deque[int] = deque()
        self._sampled = np.zeros(0, np.bool_)
        self._memory_side = np.zeros(0, np.bool_)
        self._open_samples = 0
        self._samples_answered = False
        self._blend: _Blend | None = None
        self._completions = 0
        self._unplanned = 0
        self._arrived = 0
        self._waiting_tokens = 0.0  # prompts and estimated outputs, sharing not deducted
        self._waiting_rows = self._waiting_reads = 0.0  # see WorkLeft
        self._longest_waiting = 0  # at the last plan, or later
        self._running_tokens = 0.0
        self._num_waiting = 0
        self._state = np.zeros(0, np.int8)
        self._space = np.zeros(0, np.int32)
        self._max_new = np.zeros(0, np.int64)
        self._known = np.zeros(0, np.int64)
        self._extra = np.zeros(0)
        self._estimate = np.zeros(0, np.int64)
        self._generated = np.zeros(0, np.int64)
        self._observed = np.zeros(0, np.int64)
        self._shared = np.zeros(0, np.int64)
        self._place = np.zeros(0, np.int64)
        self._sequence = np.zeros(0, np.int64)

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
        slots = self._store.put(tokens, offsets)
        self._grow()
        n = len(slots)
        self._state[slots] = _State.WAITING
        self._space[slots] = 0 if namespace is None else namespace
        self._max_new[slots] = np.maximum(max_new_tokens, 1)
        self._known[slots] = 0 if known_output is None else known_output
        self._extra[slots] = 0.0 if extra_compute is None else extra_compute
        self._observed[slots] = -1
        self._generated[slots] = 0
        self._shared[slots] = 0
        self._sampled[slots] = False
        self._place[slots] = _UNPLANNED
        self._sequence[slots] = np.arange(self._arrived, self._arrived + n)
        estimate = np.where(self._known[slots] > 0, self._known[slots], PRIOR_OUTPUT_TOKENS)
        self._estimate[slots] = np.clip(estimate, 1, self._max_new[slots])
        self._count_waiting(slots)
        self._arrived += n
        self._num_waiting += n
        self._arrivals.append(slots)
        self._unplanned += n
        return slots

    def remove(self, slot: int) -> None:
        """A request leaves for good: aborted while waiting or running, or finished.

        One that was observed is remembered for a while, so that its answer informs its neighbours.

        Raises:
            KeyError: it has left already.
        """
        self._require(slot, _State.WAITING, _State.RUNNING)
        self._leave_state(slot)
        if self._sampled.item(slot):
            self._open_samples -= 1
            self._samples_answered |= self._open_samples == 0
        self.scanner.forget(slot)
        self.index.set_waiting(slot, False)
        if self._observed.item(slot) >= 0 and self.options.memory:
            self._state[slot] = _State.FINISHED
            self._remembered.append(slot)
            if len(self._remembered) > self.options.memory:
                self._forget(self._remembered.popleft())
        else:
            self._forget(slot)
        if len(self._gone) >= max(_MAX_GONE, len(self._order) // 2):
            self.refresh()

    def observe(self, slot: int, output_length: int) -> None:
        """A request has finished with `output_length` tokens; call `remove` after it."""
        self._observed[slot] = output_length
        self._completions += 1

    # ---------------------------------------------------------------- plan

    @property
    def stale(self) -> bool:
        """Whether a new plan pays: enough arrivals, or enough answers to trust them more."""
        if self._num_waiting == 0:
            return False
        if self._unplanned * 64 >= self._num_waiting or self._samples_answered:
            return True
        if self._completions >= max(self.options.replan_interval, self._num_waiting // 20):
            return True
        return self.scanner.num_waiting == 0

    def refresh(self) -> None:
        """Take arrivals and departures into the sorted order, so that the index knows all requests."""
        if not self._arrivals and not self._gone:
            return
        store, gone = self._store, self._gone
        if gone:
            keep = np.ones(store.num_slots, np.bool_)
            keep[gone] = False
            self._order, self._lcp = prefix_sort.remove_sorted(self._order, self._lcp, keep[self._order])
        arrivals = np.concatenate([np.zeros(0, np.int64), *self._arrivals])
        arrivals = arrivals[self._state[arrivals] != _State.ABSENT]
        if len(arrivals):
            arrivals = prefix_sort.sort_prompts(store.data, store.start, store.length, self._space, arrivals)
            if len(self._order):
                self._order, self._lcp = prefix_sort.merge_sorted(
                    store.data, store.start, store.length, self._space, self._order, self._lcp, arrivals
                )
            else:
                self._order = arrivals
                self._lcp = prefix_sort.neighbour_prefixes(
                    store.data, store.start, store.length, self._space, arrivals
                )
        self._arrivals, self._gone = [], []
        if gone:
            # From here on their slots may belong to others.
            self._samples = deque(s for s in self._samples if self._state[s] != _State.ABSENT)
            store.drop(np.array(gone, np.int64))
        self._rebuild_index()

    def replan(self) -> None:
        """Estimate, sort, split, merge and load the scanner with everything that waits."""
        self.refresh()
        self.replans += 1
        self._completions = self._unplanned = 0
        self._samples_answered = False
        self._estimate_outputs()
        self._blend = blend = self._blend_waiting(self._planned())
        self._place.fill(_UNPLANNED)
        self._place[blend.slots] = np.arange(len(blend.slots))
        self._shared[blend.slots] = blend.density.shared
        self._waiting_tokens = self._waiting_rows = self._waiting_reads = 0.0
        self._longest_waiting = 0
        self._count_waiting(self._order[self._state[self._order] == _State.WAITING])
        self.scanner.load(blend.scan)
        self._rebuild_index()

    def plan(self) -> Plan:
        """The admission order of all that waits, window after window, as if every estimate were exact."""
        self.replan()
        assert self._blend is not None
        blends = [self._blend]
        if self.options.window:
            rest = (self._state[self._order] == _State.WAITING) & ~self._planned()
            windows = self._sequence[self._order] // self.options.window
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
        return np.asarray(slots[self._place[slots] == np.arange(len(slots))])

    @property
    def root_density(self) -> float:
        """rho of what waits, with its sharing."""
        return self.scanner.root_density

    @property
    def sharing_ratio(self) -> float:
        """Share of the planned prompts' tokens that need not be computed."""
        if self._blend is None or not self._blend.prompt:
            return 0.0
        return self._blend.density.shared_tokens / self._blend.prompt

    # ---------------------------------------------------------------- scanner

    @property
    def partition(self) -> Partition:
        """M_L and M_R in KV tokens."""
        return self.scanner.partition

    @property
    def compute_reserve(self) -> float:
        """KV tokens that the compute side will go on using while any of it waits."""
        return self.scanner.partition.compute if self.scanner.num_waiting else 0.0

    @property
    def used(self) -> Partition:
        """KV tokens that running requests count for on each side."""
        return self.scanner.used

    def propose(self, limit: int, quota: Quota | None = None, *, longest: int = UNLIMITED) -> list[int]:
        """Requests to admit next, in order: samples first, then both ends under the partition.

        Args:
            quota: what the compute side may prefill, instead of its share of the partition.
            longest: output tokens that fit beside what runs; see `DualScanner.propose`.
        """
        while self._samples and self._state[self._samples[0]] != _State.WAITING:
            self._samples.popleft()
        waiting = (s for s in self._samples if self._state[s] == _State.WAITING)
        samples = list(islice(waiting, max(limit, 0)))
        chosen = set(samples)
        rest = self.scanner.propose(limit, quota, longest=longest)
        rest = [slot for slot in rest if slot not in chosen]
        # What is known to be long need not wait for what samples will say.
        certain = 0
        while certain < len(rest) and self._certain(rest[certain]):
            certain += 1
        return (rest[:certain] + samples + rest[certain:])[:limit]

    def _certain(self, slot: int) -> bool:
        """Whether a request just proposed belongs to the memory side whatever the samples say."""
        return self._known.item(slot) > 0 and self.scanner.proposed_side(slot) is Side.MEMORY

    def admit(self, slot: int, shared_tokens: int = 0) -> Side:
        """A waiting request starts running.

        Args:
            shared_tokens: prompt tokens served by KV that is held anyway.

        Raises:
            KeyError: it does not wait.
        """
        self._require(slot, _State.WAITING)
        prompt = self._store.length.item(slot)
        output = self.estimate(slot)
        self._leave_state(slot)
        self._estimate[slot] = output
        self._state[slot] = _State.RUNNING
        self._running_tokens += prompt + output
        self._shared[slot] = shared_tokens
        self.index.set_waiting(slot, False)
        side = self.scanner.proposed_side(slot)
        if side is None:  # a sample or a preemption goes where its own density puts it
            dense = float(self.cost_model.density(prompt, output)) >= self.root_density
            side = Side.COMPUTE if dense else Side.MEMORY
        self.scanner.admit(slot, self._weight(slot), side)
        self._memory_side[slot] = side is Side.MEMORY
        return side

    def retract(self, slot: int) -> None:
        """A running request goes back to the queue, its KV lost; KeyError if it does not run."""
        self._require(slot, _State.RUNNING)
        self._leave_state(slot)
        self._state[slot] = _State.WAITING
        self._num_waiting += 1
        self._count_one(slot, 1)
        self._longest_waiting = max(self._longest_waiting, self._estimate.item(slot))
        self.scanner.restore(slot)
        self.index.set_waiting(slot, True)
        self._unplanned += 1

    def progress(self, slots: Ints, generated: Ints) -> None:
        """Running requests have generated so many tokens; estimates that were outlived are corrected.

        Paper 5.4: a request that turns out to be memory-intensive moves to the memory side's account. An
        outlived estimate doubles, so the correction is rare.
        """
        self._generated[slots] = generated
        for slot in slots[generated >= self._estimate[slots]].tolist():
            estimate = self.estimate(slot)
            if self._state[slot] != _State.RUNNING or estimate == self._estimate[slot]:
                continue
            self._running_tokens += float(estimate - self._estimate[slot])
            self._estimate[slot] = estimate
            density = self.cost_model.density(self._store.length[slot], estimate)
            self.scanner.rebalance(slot, self._weight(slot), outlived=bool(density < self.root_density))
            self._memory_side[slot] = self.scanner.side(slot) is Side.MEMORY

    def estimate(self, slot: int) -> int:
        """Expected output tokens of a request, capped by max_new_tokens.

        One that has outlived its estimate is expected to go on for as long again: answers' lengths have
        long tails, and a forecast of memory had better err to this side.
        """
        estimate, generated = self._estimate.item(slot), self._generated.item(slot)
        if generated >= estimate:
            estimate = 2 * max(generated, 1)
        return min(estimate, self._max_new.item(slot))

    def estimates(self, slots: Ints) -> Ints:
        """`estimate` of many, int64 (n,)."""
        estimate, generated = self._estimate[slots], self._generated[slots]
        outlived = 2 * np.maximum(generated, 1)
        return np.asarray(
            np.minimum(np.where(generated >= estimate, outlived, estimate), self._max_new[slots])
        )

    def on_memory_side(self, slots: Ints) -> NDArray[np.bool_]:
        """(n,) whether running requests count on the memory side."""
        return np.asarray(self._memory_side[slots])

    def spread(self, slots: Ints, released: Ints) -> float:
        """Standard deviation of what running requests will hold together, KV tokens, when they should end.

        Lengths that are not known are taken for exponential: one that should have ended still holds all its
        tokens with probability 1/e, and has more of them. One that is expected to reach its cap ends there.

        Args:
            released: (n,) KV tokens that each of them alone holds now.
        """
        estimate = self.estimates(slots)
        remaining = np.maximum(estimate - self._generated[slots], 0)
        uncertain = (self._known[slots] == 0) & (estimate < self._max_new[slots])
        held = (released + remaining)[uncertain].astype(np.float64)
        return float(np.sqrt(_OUTLIVES * (1.0 - _OUTLIVES) * (held**2).sum()))

    def work_left(self, remaining: Ints, context: Ints) -> WorkLeft:
        """What running and waiting requests will still do.

        Args:
            remaining: (n,) output tokens that each running request has yet to produce.
            context: (n,) KV tokens that each of them reads per step now.
        """
        rows = self._waiting_rows + float(remaining.sum())
        reads = self._waiting_reads + float((remaining * (context + (remaining + 1) / 2)).sum())
        return WorkLeft(
            rows=rows,
            kv_reads=reads,
            longest=float(max(self._longest_waiting, remaining.max(initial=0))),
            density=self.cost_model.work_density(rows, reads),
        )

    def side(self, slot: int) -> Side:
        """Side of a running request; KeyError if it does not run."""
        return self.scanner.side(slot)

    def fits_entirely(self) -> bool:
        """Whether everything that waits fits beside what runs: then nobody need be delayed."""
        return self._waiting_tokens + self._running_tokens <= self.kv_capacity

    # ---------------------------------------------------------------- inside

    def _grow(self) -> None:
        missing = self._store.num_slots - len(self._state)
        if missing <= 0:
            return
        for name in (
            "_state",
            "_space",
            "_max_new",
            "_known",
            "_extra",
            "_estimate",
            "_generated",
            "_observed",
            "_shared",
            "_place",
            "_sampled",
            "_memory_side",
            "_sequence",
        ):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros(missing, old.dtype)]))

    def _require(self, slot: int, *states: _State) -> None:
        if not 0 <= slot < len(self._state) or self._state.item(slot) not in states:
            expected = " or ".join(state.name.lower() for state in states)
            raise KeyError(f"request slot {slot} is not {expected}")

    def _leave_state(self, slot: int) -> None:
        """Take a request out of the totals of its present state."""
        state = self._state.item(slot)
        if state == _State.WAITING:
            self._num_waiting -= 1
            self._count_one(slot, -1)
        elif state == _State.RUNNING:
            self._running_tokens -= float(self._store.length.item(slot) + self._estimate.item(slot))
            self.scanner.release(slot)

    def _count_one(self, slot: int, sign: int) -> None:
        """`_count_waiting` of one request: admissions and ends come singly, and arrays of one are slow."""
        prompt, output = self._store.length.item(slot), self._estimate.item(slot)
        self._waiting_tokens += sign * float(prompt + output)
        self._waiting_rows += sign * float(prompt - self._shared.item(slot) + output)
        self._waiting_reads += sign * (output * (prompt + (output + 1) / 2))

    def _count_waiting(self, slots: Ints) -> None:
        """Add waiting requests to the totals of what waits."""
        prompt, output = self._store.length[slots], self._estimate[slots]
        self._waiting_tokens += float((prompt + output).sum())
        self._waiting_rows += float((prompt - self._shared[slots] + output).sum())
        self._waiting_reads += float((output * (prompt + (output + 1) / 2)).sum())
        self._longest_waiting = max(self._longest_waiting, int(output.max(initial=0)))

    def _forget(self, slot: int) -> None:
        self._state[slot] = _State.ABSENT
        self._gone.append(slot)

    def _weight(self, slot: int) -> float:
        new_tokens = max(self._store.length.item(slot) - self._shared.item(slot), 0)
        return float(share_of_one(new_tokens, self._estimate.item(slot)))

    def _rebuild_index(self) -> None:
        order = self._order
        prompt, output = self._store.length[order], self._estimate[order]
        self.index.rebuild(
            self._store,
            self._space,
            order,
            waiting=self._state[order] == _State.WAITING,
            comp=self.cost_model.comp(prompt, output) + self._extra[order],
            mem=self.cost_model.mem(prompt, output),
            place=self._place[order],
        )

    def _estimate_outputs(self) -> None:
        """Estimate all that waits from the answers in its neighbourhood; choose new samples."""
        order = self._order
        tree = build_tree(
            self._lcp, self._store.length[order], np.maximum(self._estimate[order], 1), self.cost_model
        )
        estimate = estimate_outputs(
            lo=tree.lo,
            hi=tree.hi,
            parent=tree.parent,
            request_parent=tree.request_parent,
            observed=self._observed[order],
            known=self._known[order],
            max_new_tokens=self._max_new[order],
        )
        waits = self._state[order] == _State.WAITING
        waiting = order[waits]
        self._estimate[waiting] = np.maximum(
            estimate[waits], np.minimum(self._generated[waiting] + 1, self._max_new[waiting])
        )
        unknown = self._planned() & (self._known[order] == 0) & (self._max_new[order] > _SHORT_CAP)
        covered = self._sampled[order] | (self._observed[order] >= 0)
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
        self._sampled[picks] = True
        self._open_samples += len(picks)
        self._samples.extend(picks.tolist())

    def _planned(self) -> NDArray[np.bool_]:
        """Which sorted requests wait in the present window: the oldest that still has some waiting."""
        waits = self._state[self._order] == _State.WAITING
        if self.options.window and waits.any():
            window = self._sequence[self._order] // self.options.window
            waits &= window == window[waits].min()
        return np.asarray(waits)

    def _blend_waiting(self, planned: NDArray[np.bool_]) -> _Blend:
        """Sort, split and merge the planned ones of the sorted requests."""
        order, lcp = prefix_sort.remove_sorted(self._order, self._lcp, planned)
        tree = build_tree(
            lcp,
            self._store.length[order],
            self._estimate[order],
            self.cost_model,
            extra_comp=self._extra[order],
        )
        density = order_by_density(
            tree,
            self.cost_model,
            sharing_budget=self.options.sharing_budget,
            group_tokens=int(self.kv_capacity * self.options.group_fraction),
            split=self.options.split,
        )
        slots = order[density.order]
        new_tokens = self._store.length[slots] - density.shared
        return _Blend(
            slots=slots,
            density=density,
            scan=ScanOrder(
                slots=slots,
                density=density.group_density[density.group],
                new_tokens=new_tokens,
                output=self._estimate[slots],
                weight=share_weight(new_tokens, self._estimate[slots]),
                comp=density.comp,
                mem=tree.mem[density.order],
            ),
            prompt=int(self._store.length[order].sum()),
            possible=tree.shared_tokens,
        )

"""The planner: a pool of requests in, admission order out (paper 5). The one entry to the algorithm.

The server's policy, the batch runner, the simulator and the sharder all drive this class. It keeps
the sorted prompts, plans over those that wait, and keeps the scanner's accounts of those that run.
Nothing here looks at a clock: equal calls give equal plans.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.order.output_length import choose_samples, estimate_outputs
from sglang.srt.blend.core.order.plan import Blend, Plan, PlannerOptions, blend_requests
from sglang.srt.blend.core.pool import prefix_sort
from sglang.srt.blend.core.pool.pending_index import PendingIndex
from sglang.srt.blend.core.pool.prefix_tree import build_tree, densities
from sglang.srt.blend.core.pool.request_table import UNPLANNED, RequestTable, State
from sglang.srt.blend.core.step.dual_scan import (
    UNLIMITED,
    DualScanner,
    Side,
    scan_to_the_end,
)
from sglang.srt.blend.core.step.pacing import Quota, WorkLeft
from sglang.srt.blend.core.step.partition import Partition, share_of_one

Ints = NDArray[np.int64]

# Answers capped at so few tokens need no sample: whatever their length is, it changes little, while the
# prefix of a sample may have left the cache when its relatives' turn comes.
_SHORT_CAP = 16
# Departures after which the sorted prompts are compacted even if nobody asks for a plan.
_MAX_GONE = 4096


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
        self.table = RequestTable()
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
        table.require(slot, State.WAITING, State.RUNNING)
        table.leave(slot)
        if table.sampled.item(slot):
            self._open_samples -= 1
            self._samples_answered |= self._open_samples == 0
        self.scanner.forget(slot)
        self.index.set_waiting(slot, False)
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
        return self.scanner.num_waiting == 0

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
        table.place.fill(UNPLANNED)
        table.place[blend.slots] = np.arange(len(blend.slots))
        table.shared[blend.slots] = blend.density.shared
        table.forget_waiting()
        table.count_waiting(self._order[table.state[self._order] == State.WAITING])
        self.scanner.load(blend.scan, self._density_left())
        self._rebuild_index()

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
        return np.asarray(slots[self.table.place[slots] == np.arange(len(slots))])

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
        """KV tokens that the compute side goes on using while any of it waits, if it fills its share.

        Where prefill is paced, `WorkLeft.compute_reserve` is what it will use.
        """
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
        while self._samples and self.table.state[self._samples[0]] != State.WAITING:
            self._samples.popleft()
        waiting = (s for s in self._samples if self.table.state[s] == State.WAITING)
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
        return self.table.known.item(slot) > 0 and self.scanner.proposed_side(slot) is Side.MEMORY

    def admit(self, slot: int, shared_tokens: int = 0) -> Side:
        """A waiting request starts running.

        Args:
            shared_tokens: prompt tokens served by KV that is held anyway.

        Raises:
            KeyError: it does not wait.
        """
        table = self.table
        table.require(slot, State.WAITING)
        prompt, output = table.store.length.item(slot), table.expected(slot)
        table.leave(slot)
        table.estimate[slot] = output
        table.start_running(slot, shared=shared_tokens)
        self.index.set_waiting(slot, False)
        side = self.scanner.proposed_side(slot)
        if side is None:  # a sample or a preemption goes where its own density puts it
            dense = float(self.cost_model.density(prompt, output)) >= self.root_density
            side = Side.COMPUTE if dense else Side.MEMORY
        self.scanner.admit(slot, self._weight(slot), side)
        table.memory_side[slot] = side is Side.MEMORY
        return side

    def retract(self, slot: int) -> None:
        """A running request goes back to the queue, its KV lost; KeyError if it does not run."""
        table = self.table
        table.require(slot, State.RUNNING)
        table.leave(slot)
        self.scanner.release(slot)
        table.start_waiting(slot)
        self.scanner.restore(slot)
        self.index.set_waiting(slot, True)
        self._unplanned += 1

    def progress(self, slots: Ints, generated: Ints) -> None:
        """Running requests have generated so many tokens; estimates that were outlived are corrected.

        Paper 5.4: a request that turns out to be memory-intensive moves to the memory side's account. An
        outlived estimate doubles, so the correction is rare.
        """
        table = self.table
        table.generated[slots] = generated
        for slot in slots[generated >= table.estimate[slots]].tolist():
            estimate = table.expected(slot)
            if table.state[slot] != State.RUNNING or estimate == table.estimate[slot]:
                continue
            table.correct(slot, estimate)
            density = self.cost_model.density(table.store.length[slot], estimate)
            self.scanner.rebalance(slot, self._weight(slot), outlived=bool(density < self.root_density))
            table.memory_side[slot] = self.scanner.side(slot) is Side.MEMORY

    def estimate(self, slot: int) -> int:
        """Expected output tokens of a request; see `RequestTable.expected`."""
        return self.table.expected(slot)

    def estimates(self, slots: Ints) -> Ints:
        """`estimate` of many, int64 (n,)."""
        return self.table.expected_many(slots)

    def on_memory_side(self, slots: Ints) -> NDArray[np.bool_]:
        """(n,) whether running requests count on the memory side."""
        return np.asarray(self.table.memory_side[slots])

    def spread(self, slots: Ints, released: Ints) -> float:
        """How uncertain it is what running requests will hold, KV tokens; see `RequestTable.spread`."""
        return self.table.spread(slots, released)

    def work_left(self, remaining: Ints, context: Ints) -> WorkLeft:
        """What running and waiting requests will still do.

        Args:
            remaining: (n,) output tokens that each running request has yet to produce.
            context: (n,) KV tokens that each of them reads per step now.
        """
        table = self.table
        rows = table.waiting_rows + float(remaining.sum())
        reads = table.waiting_reads + float((remaining * (context + (remaining + 1) / 2)).sum())
        return WorkLeft(
            rows=rows,
            kv_reads=reads,
            longest=float(max(table.longest_waiting, remaining.max(initial=0))),
            density=self.cost_model.work_density(rows, reads),
            compute=self.scanner.demand,
        )

    def side(self, slot: int) -> Side:
        """Side of a running request; KeyError if it does not run."""
        return self.scanner.side(slot)

    def fits_entirely(self) -> bool:
        """Whether everything that waits fits beside what runs: then nobody need be delayed."""
        return self.table.waiting_tokens + self.table.running_tokens <= self.kv_capacity

    # ---------------------------------------------------------------- inside

    def _density_left(self) -> float:
        """Comp / Mem of what running and waiting requests will still do."""
        table = self.table
        running = np.flatnonzero(table.state == State.RUNNING)
        generated = table.generated[running]
        remaining = np.maximum(table.expected_many(running) - generated, 0)
        return self.work_left(remaining, table.store.length[running] + generated).density

    def _forget(self, slot: int) -> None:
        self.table.state[slot] = State.ABSENT
        self._gone.append(slot)

    def _weight(self, slot: int) -> float:
        new_tokens = max(self.table.store.length.item(slot) - self.table.shared.item(slot), 0)
        return float(share_of_one(new_tokens, self.table.estimate.item(slot)))

    def _rebuild_index(self) -> None:
        table, order = self.table, self._order
        prompt, output = table.store.length[order], table.estimate[order]
        self.index.rebuild(
            table.store,
            table.space,
            order,
            waiting=table.state[order] == State.WAITING,
            comp=self.cost_model.comp(prompt, output) + table.extra[order],
            mem=self.cost_model.mem(prompt, output),
            place=table.place[order],
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

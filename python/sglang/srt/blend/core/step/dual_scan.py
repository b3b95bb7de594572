"""Dual scanner (paper 5.3, Algorithm 3).

Two cursors walk the density order from both ends, and each side fills its share of the KV capacity.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sglang.srt.blend.core.step.pacing import Demand, Quota
from sglang.srt.blend.core.step.partition import (
    DENSEST,
    IDLE_STEPS,
    Partition,
    compute_share,
    partition_capacity,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MEMORY_FIRST = 8
"""Memory-side requests proposed before the compute side: they take longest and cost least to prefill."""


class Side(IntEnum):
    """Which end of the density order a request was admitted from."""

    COMPUTE = 0
    MEMORY = 1


_SIDES = tuple(Side)


class _Walk(NamedTuple):
    """The order that both cursors walk; arrays (n,), highest density first; see `ScanOrder`."""

    waiting: NDArray[np.bool_]
    density: Floats
    share: Floats
    new_tokens: Ints
    output: Ints


class _Capacity(NamedTuple):
    """What is divided between the sides: KV tokens, and the density that both together should have."""

    tokens: float
    root_density: float


class _Rules(NamedTuple):
    """What bounds one proposal; fields behind a flag count only if it is set.

    Attributes:
        limit: requests.
        paced: the compute side has a quota instead of its share.
        quota: prompt tokens that the compute side may prefill.
        dense: density from which on a request is compute side.
        late: output tokens; answers of that many or more are held back neither by `dense` nor by a share.
        bounded: long answers no longer fit.
        longest: output tokens of the longest that does.
    """

    limit: int
    paced: bool
    quota: int
    dense: float
    late: float
    bounded: bool
    longest: int


class _Cursors(NamedTuple):
    """How far a proposal has come.

    Attributes:
        left, right: positions of the next request of either end.
        end: position whose density decides the shares: `right`, or where skipping began.
        skipping: answers too long to fit have been skipped.
        compute, memory: KV tokens that each side uses, proposals included.
        taken: requests proposed.
    """

    left: int
    right: int
    end: int
    skipping: bool
    compute: float
    memory: float
    taken: int


@njit(cache=True)
def _advance(waiting, left, right):  # type: ignore[no-untyped-def]
    """Both cursors, moved inwards to the next request that waits."""
    while left <= right and not waiting[left]:
        left += 1
    while right >= left and not waiting[right]:
        right -= 1
    return left, right


@njit(cache=True)
def _rooms(capacity, dense, sparse, compute, memory):  # type: ignore[no-untyped-def]
    """KV tokens that each side may still take; a side is full at 0 or below.

    With nothing running the larger share may take a request whatever its size, so that none is too
    large to be admitted.

    Args:
        dense, sparse: density of the next request of the compute and of the memory side.
        compute, memory: KV tokens that each side uses.
    """
    share = compute_share(capacity.root_density, dense, sparse)
    room_compute = capacity.tokens * share - compute
    room_memory = capacity.tokens * (1.0 - share) - memory
    if room_compute <= 0.0 and room_memory <= 0.0 and compute + memory <= 0.0:
        if share >= 0.5:
            room_compute = 1.0
        else:
            room_memory = 1.0
    return room_compute, room_memory


@njit(cache=True)
def _take_compute_side(walk, capacity, rules, at, positions, sides):  # type: ignore[no-untyped-def]
    """Propose from the left until the compute side's quota, or else its share, is used up."""
    left, right, end, skipping, compute, memory, taken = at
    quota = rules.quota
    while taken < rules.limit:
        left, right = _advance(walk.waiting, left, right)
        if left > right:
            break
        if not skipping:
            end = right
        if rules.paced:
            full = quota <= 0
        else:
            full = _rooms(capacity, walk.density[left], walk.density[end], compute, memory)[0] <= 0.0
        if full:
            break
        positions[taken], sides[taken] = left, 0
        compute += walk.share[left]
        quota -= walk.new_tokens[left]
        left += 1
        taken += 1
    return _Cursors(left, right, end, skipping, compute, memory, taken)


@njit(cache=True)
def _take_memory_side(walk, capacity, rules, at, stop, positions, sides):  # type: ignore[no-untyped-def]
    """Propose from the right, up to `stop` in all, until the memory side's share is used up.

    Where the compute side is paced, the memory side ends where densities reach `rules.dense`. Behind the
    first request, answers that are too long to fit are skipped, and what would fit behind them ends where it
    would belong to the compute side.
    """
    left, right, end, skipping, compute, memory, taken = at
    while taken < stop:
        left, right = _advance(walk.waiting, left, right)
        if left > right:
            break
        if not skipping:
            end = right
        room = _rooms(capacity, walk.density[left], walk.density[end], compute, memory)[1]
        full = room <= 0.0 or (rules.paced and walk.density[right] >= rules.dense)
        if full and walk.output[right] < rules.late:
            break
        fits = not rules.bounded or walk.output[right] <= rules.longest
        if rules.bounded and taken > 0:
            if walk.density[right] >= capacity.root_density:
                break
            if not fits:
                skipping = True
                right -= 1
                continue
        positions[taken], sides[taken] = right, 1
        if fits:
            memory += walk.share[right]
        right -= 1
        taken += 1
    return _Cursors(left, right, end, skipping, compute, memory, taken)


@njit(cache=True)
def _propose(walk, capacity, rules, at):  # type: ignore[no-untyped-def]
    """Positions to admit and their sides (paper Algorithm 3); the caller's arrays stay as they are.

    A few of the memory side, the compute side, the rest of the memory side: the first few begin at once, and
    the compute side has its turn when memory is what the others wait for.
    """
    positions = np.empty(rules.limit, np.int64)
    sides = np.empty(rules.limit, np.int64)
    at = _take_memory_side(walk, capacity, rules, at, min(MEMORY_FIRST, rules.limit), positions, sides)
    at = _take_compute_side(walk, capacity, rules, at, positions, sides)
    at = _take_memory_side(walk, capacity, rules, at, rules.limit, positions, sides)
    return positions[: at.taken], sides[: at.taken]


@njit(cache=True)
def _run_dry(share, density, output, comp, mem, capacity):  # type: ignore[no-untyped-def]
    """Admit everything against a clock that counts decoding steps; returns (positions, sides, steps).

    A request gives its share back when its output is done. The root density is that of what still
    waits, so the two sides run out together.
    """
    n = len(share)
    waiting = np.ones(n, np.bool_)
    positions = np.empty(n, np.int64)
    sides = np.empty(n, np.int64)
    steps = np.empty(n, np.float64)
    ends = [(0.0, np.int64(0), np.int64(0))]
    ends.clear()
    comp_left, mem_left = comp.sum(), mem.sum()
    used = np.zeros(2)
    left, right, now, count = 0, n - 1, 0.0, 0
    while count < n:
        left, right = _advance(waiting, left, right)
        root = comp_left / mem_left if mem_left > 0.0 else DENSEST
        rooms = _rooms(_Capacity(capacity, root), density[left], density[right], used[0], used[1])
        side = 1 if rooms[1] > 0.0 else 0
        if rooms[side] <= 0.0:
            now, position, owner = heapq.heappop(ends)
            used[owner] -= share[position]
            if len(ends) == 0:
                used[0], used[1] = 0.0, 0.0  # no rounding residue may keep an idle side full
            continue
        position = left if side == 0 else right
        waiting[position] = False
        used[side] += share[position]
        comp_left -= comp[position]
        mem_left = max(mem_left - mem[position], 0.0)
        heapq.heappush(ends, (now + output[position] + IDLE_STEPS, np.int64(position), np.int64(side)))
        positions[count], sides[count], steps[count] = position, side, now
        count += 1
    return positions, sides, steps


@dataclass(frozen=True, slots=True)
class ScanOrder:
    """What the scanner walks; all arrays (n,), highest density first.

    Attributes:
        slots: requests.
        density: of the schedulable group that the request belongs to, non-increasing where splits
            could afford it.
        new_tokens: prompt tokens that are not shared.
        output: tokens, estimated.
        share: KV tokens that each counts for in its side's share; see `share_tokens`.
        comp: seconds with sharing; mem: seconds.
    """

    slots: Ints
    density: Floats
    new_tokens: Ints
    output: Ints
    share: Floats
    comp: Floats
    mem: Floats


class DualScanner:
    """Cursors over a density order, and the share of the KV capacity that each side uses.

    Args:
        capacity: KV tokens to divide.

    Attributes:
        num_waiting: requests of the order that still wait.
        demand: of those among them that were dense when the order was loaded.
    """

    def __init__(self, capacity: float) -> None:
        self.capacity = float(capacity)
        self.num_waiting = 0
        self.demand = Demand()
        self._order = _NOTHING
        self._waiting = np.zeros(0, np.bool_)
        self._position: dict[int, int] = {}  # of a slot in the order
        self._left, self._right = 0, -1
        self._comp_left = self._mem_left = 0.0
        self._dense_share = self._dense_token_steps = _NO_FLOATS
        self._account: dict[int, tuple[Side, float]] = {}
        self._used = [0.0, 0.0]
        self._proposed: dict[int, Side] = {}

    # ---------------------------------------------------------------- the order

    def load(self, order: ScanOrder, dense: float | None = None) -> None:
        """Start over with a new order of waiting requests; running requests keep their accounts.

        Args:
            dense: density from which on requests count as compute side in `demand`; by default the root's.
        """
        n = len(order.slots)
        self._order, self.num_waiting = order, n
        self._waiting = np.ones(n, np.bool_)
        self._position = dict(zip(order.slots.tolist(), range(n), strict=True))
        self._left, self._right = 0, n - 1
        self._comp_left, self._mem_left = float(order.comp.sum()), float(order.mem.sum())
        self._proposed = {}
        dense = self.root_density if dense is None else dense
        self._dense_share = np.where(order.density >= dense, order.share, 0.0)
        self._dense_token_steps = self._dense_share * (order.output + IDLE_STEPS)
        self.demand = Demand(float(self._dense_share.sum()), float(self._dense_token_steps.sum()))

    @property
    def order(self) -> ScanOrder:
        """The order that was loaded, admitted requests included."""
        return self._order

    @property
    def root_density(self) -> float:
        """Density of what still waits in the order; infinite when nothing of it decodes."""
        if self._mem_left > 0.0:
            return self._comp_left / self._mem_left
        return float("inf") if self._comp_left > 0.0 else 0.0

    @property
    def partition(self) -> Partition:
        """M_L and M_R in KV tokens, at the cursors' present densities (paper 5.3)."""
        self._left, self._right = _advance(self._waiting, self._left, self._right)
        if self._left > self._right:
            return Partition(self.capacity / 2, self.capacity / 2)
        high, low = self._order.density[self._left], self._order.density[self._right]
        return partition_capacity(
            self.capacity, root=self.root_density, compute_side=max(high, low), memory_side=low
        )

    def compute_share(self) -> float:
        """KV tokens that the compute side goes on using while any of the order waits, if it fills its share.

        Where prefill is paced, `WorkLeft.compute_reserve` is what it will use.
        """
        return self.partition.compute if self.num_waiting else 0.0

    def propose(self, limit: int, quota: Quota | None = None, *, longest: int | None = None) -> list[int]:
        """Slots to admit next, at most `limit`, in order; nothing changes but the remembered sides.

        Args:
            quota: what the compute side may prefill in this step, instead of its share. Then everything as
                dense as the work that is left is compute side, unless its answer would end last.
            longest: output tokens that still fit beside what runs; None is any number. The memory side's next
                request is proposed all the same, longer ones behind it are not: shorter ones fill what they
                cannot.
        """
        order = self._order
        self._left, self._right = _advance(self._waiting, self._left, self._right)
        positions, sides = _propose(
            _Walk(self._waiting, order.density, order.share, order.new_tokens, order.output),
            _Capacity(self.capacity, self.root_density),
            _Rules(
                limit=min(max(limit, 0), self.num_waiting),
                paced=quota is not None,
                quota=0 if quota is None else quota.tokens,
                dense=float("inf") if quota is None else quota.density,
                late=float("inf") if quota is None else quota.late,
                bounded=longest is not None,
                longest=0 if longest is None else longest,
            ),
            _Cursors(self._left, self._right, self._right, False, self._used[0], self._used[1], 0),
        )
        slots: list[int] = order.slots[positions].tolist()
        self._proposed = {slot: _SIDES[side] for slot, side in zip(slots, sides.tolist(), strict=True)}
        return slots

    def withdraw(self, slot: int) -> None:
        """A waiting request leaves the order, admitted or aborted."""
        self._mark(slot, False)

    def restore(self, slot: int) -> None:
        """A request of the order waits again, because it was retracted."""
        self._mark(slot, True)

    def waiting(self) -> list[int]:
        """Slots of the order that wait, from the compute end to the memory end."""
        slots: list[int] = self._order.slots[self._waiting].tolist()
        return slots

    # ---------------------------------------------------------------- accounts

    @property
    def used(self) -> Partition:
        """KV tokens that running requests count for on each side."""
        return Partition(*self._used)

    def side_of(self, slot: int) -> Side | None:
        """Side on which a request runs, else from which it was proposed last; None if neither."""
        entry = self._account.get(slot)
        return self._proposed.get(slot) if entry is None else entry[0]

    def accounts(self) -> dict[int, tuple[Side, float]]:
        """Side and KV tokens that each running request counts for, by slot."""
        return dict(self._account)

    def admit(self, slot: int, tokens: float, side: Side) -> None:
        """A request starts running and counts for so many KV tokens on a side."""
        self._proposed.pop(slot, None)
        self.withdraw(slot)
        self._account[slot] = (side, tokens)
        self._used[side] += tokens

    def release(self, slot: int) -> None:
        """A running request ended, or went back to the queue; its share is free."""
        entry = self._account.pop(slot, None)
        if entry is not None:
            side, tokens = entry
            self._used[side] -= tokens
            if not self._account:
                self._used = [0.0, 0.0]  # no rounding residue may keep an idle side full

    def forget(self, slot: int) -> None:
        """A request leaves for good, waiting or running; its slot may come back as another request."""
        self.withdraw(slot)
        self.release(slot)
        self._position.pop(slot, None)
        self._proposed.pop(slot, None)

    def rebalance(self, slot: int, tokens: float, *, outlived: bool) -> None:
        """Correct what a running request counts for; one that outlived its estimate moves to the memory side.

        Paper 5.4: a compute-side request that turns out long behaves like a memory-side one, and the
        compute side gets its share back.
        """
        entry = self._account.get(slot)
        if entry is None:
            return
        side, old = entry
        self._used[side] -= old
        side = Side.MEMORY if outlived else side
        self._used[side] += tokens
        self._account[slot] = (side, tokens)

    # ---------------------------------------------------------------- inside

    def _mark(self, slot: int, waiting: bool) -> None:
        position = self._position.get(slot, -1)
        if position < 0 or self._waiting[position] == waiting:
            return
        self._waiting[position] = waiting
        sign = 1 if waiting else -1
        self.num_waiting += sign
        self._comp_left = max(self._comp_left + sign * float(self._order.comp[position]), 0.0)
        self._mem_left = max(self._mem_left + sign * float(self._order.mem[position]), 0.0)
        self.demand = Demand(
            max(self.demand.share + sign * self._dense_share.item(position), 0.0),
            max(self.demand.token_steps + sign * self._dense_token_steps.item(position), 0.0),
        )
        if waiting:
            self._left, self._right = min(self._left, position), max(self._right, position)

    def _check(self) -> None:
        """Running totals equal a recount, up to rounding."""
        order, waiting = self._order, np.flatnonzero(self._waiting)
        for total, recount in (
            (self._comp_left, order.comp[waiting].sum()),
            (self._mem_left, order.mem[waiting].sum()),
            (self.demand.share, self._dense_share[waiting].sum()),
            (self.demand.token_steps, self._dense_token_steps[waiting].sum()),
            *((self._used[side], sum(t for s, t in self._account.values() if s is side)) for side in Side),
        ):
            assert np.isclose(total, recount, rtol=1e-6, atol=1e-3), (total, recount)
        assert self.num_waiting == len(waiting)
        assert not len(waiting) or (self._left <= waiting[0] and waiting[-1] <= self._right)


_NO_INTS, _NO_FLOATS = np.zeros(0, np.int64), np.zeros(0)
_NOTHING = ScanOrder(_NO_INTS, _NO_FLOATS, _NO_INTS, _NO_INTS, _NO_FLOATS, _NO_FLOATS, _NO_FLOATS)


def scan_to_the_end(order: ScanOrder, capacity: float) -> tuple[Ints, Ints, Floats]:
    """The whole admission order against a clock of decoding steps, for planning without an engine.

    Returns:
        (slots, sides, steps), each (n,): who is admitted, from which side, at which decoding step.
    """
    positions, sides, steps = _run_dry(
        order.share, order.density, order.output.astype(np.float64), order.comp, order.mem, float(capacity)
    )
    return order.slots[positions], sides, steps

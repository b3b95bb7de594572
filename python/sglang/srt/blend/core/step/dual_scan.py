"""Dual scanner (paper 5.3, Algorithm 3).

Two cursors walk the density order from both ends, and each side fills its share of the KV capacity.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from enum import IntEnum

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

# Memory-side requests offered before the compute side has its turn in a step.
_LEAD = 8
# No output is too long.
UNLIMITED = 1 << 40


class Side(IntEnum):
    """Which end of the density order a request was admitted from."""

    COMPUTE = 0
    MEMORY = 1


_SIDES = tuple(Side)


@njit(cache=True)
def _advance(waiting, left, right):  # type: ignore[no-untyped-def]
    while left <= right and not waiting[left]:
        left += 1
    while right >= left and not waiting[right]:
        right -= 1
    return left, right


@njit(cache=True)
def _rooms(left, right, density, root, capacity, used_compute, used_memory):  # type: ignore[no-untyped-def]
    """KV tokens that each side may still take; a side is full at 0 or below.

    With nothing running the larger share may take a request whatever its size, so that none is too
    large to be admitted.
    """
    share = compute_share(root, density[left], density[right])
    room_compute = capacity * share - used_compute
    room_memory = capacity * (1.0 - share) - used_memory
    if room_compute <= 0.0 and room_memory <= 0.0 and used_compute + used_memory <= 0.0:
        if share >= 0.5:
            room_compute = 1.0
        else:
            room_memory = 1.0
    return room_compute, room_memory


@njit(cache=True)
def _scan(  # type: ignore[no-untyped-def]
    waiting,
    weight,
    new_tokens,
    density,
    left,
    right,
    root,
    capacity,
    used_compute,
    used_memory,
    limit,
    quota,
    dense,
    late,
    output,
    longest,
):
    """Places to admit, from both ends, until the shares are full; the caller's arrays stay as they are.

    The memory side leads: its requests take longest and cost least to prefill. Only a few of them,
    so that the compute side has its turn when memory is what they wait for. With a quota >= 0 the compute
    side has enough when it has so many tokens to prefill, whatever its share, and the memory side ends where
    densities reach `dense`. Outputs of `late` and more pass over that and over the memory side's share.
    Behind the first, the memory side skips outputs above `longest`.
    """
    paced = quota >= 0
    places = np.empty(limit, np.int64)
    sides = np.empty(limit, np.int64)
    count = 0
    end, skipping = right, False  # the shares are those of the end, be it too long to be offered
    for phase in range(3):  # a few of the memory side, the compute side, the rest of the memory side
        stop = min(_LEAD, limit) if phase == 0 else limit
        while count < stop:
            left, right = _advance(waiting, left, right)
            if left > right:
                break
            if not skipping:
                end = right
            room_compute, room_memory = _rooms(left, end, density, root, capacity, used_compute, used_memory)
            if phase == 1:
                if quota <= 0 if paced else room_compute <= 0.0:
                    break
                places[count], sides[count] = left, 0
                used_compute += weight[left]
                quota -= new_tokens[left]
                left += 1
            else:
                full = room_memory <= 0.0 or (paced and density[right] >= dense)
                if full and output[right] < late:
                    break
                if longest < UNLIMITED and count > 0:
                    if density[right] >= root:
                        break  # what would fit behind it belongs to the compute side
                    if output[right] > longest:
                        skipping = True
                        right -= 1
                        continue
                places[count], sides[count] = right, 1
                if output[right] <= longest:
                    used_memory += weight[right]
                right -= 1
            count += 1
    return places[:count], sides[:count]


@njit(cache=True)
def _run_dry(weight, density, output, comp, mem, capacity):  # type: ignore[no-untyped-def]
    """Admit everything against a clock that counts decoding steps; returns (places, sides, steps).

    A request gives its weight back when its output is done. The root density is that of what still
    waits, so the two sides run out together.
    """
    n = len(weight)
    waiting = np.ones(n, np.bool_)
    places = np.empty(n, np.int64)
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
        rooms = _rooms(left, right, density, root, capacity, used[0], used[1])
        side = 1 if rooms[1] > 0.0 else 0
        if rooms[side] <= 0.0:
            now, place, owner = heapq.heappop(ends)
            used[owner] -= weight[place]
            if len(ends) == 0:
                used[0], used[1] = 0.0, 0.0  # no rounding residue may keep an idle side full
            continue
        place = left if side == 0 else right
        waiting[place] = False
        used[side] += weight[place]
        comp_left -= comp[place]
        mem_left = max(mem_left - mem[place], 0.0)
        heapq.heappush(ends, (now + output[place] + IDLE_STEPS, np.int64(place), np.int64(side)))
        places[count], sides[count], steps[count] = place, side, now
        count += 1
    return places, sides, steps


@dataclass(frozen=True, slots=True)
class ScanOrder:
    """What the scanner walks; all arrays (n,), highest density first.

    Attributes:
        slots: requests.
        density: of the schedulable group that the request belongs to, non-increasing where splits
            could afford it.
        new_tokens: prompt tokens that are not shared.
        weight: see `share_weight`.
        output: tokens, estimated.
        comp: seconds with sharing; mem: seconds.
    """

    slots: Ints
    density: Floats
    new_tokens: Ints
    output: Ints
    weight: Floats
    comp: Floats
    mem: Floats


class DualScanner:
    """Cursors and accounts of both sides.

    Args:
        capacity: KV tokens to divide.

    Attributes:
        num_waiting: requests of the order that still wait.
        demand: of those among them that were dense when the order was loaded.
    """

    def __init__(self, capacity: float) -> None:
        self.capacity = float(capacity)
        self._waiting = np.zeros(0, np.bool_)
        self.num_waiting = 0
        self._place: dict[int, int] = {}
        self._left, self._right = 0, -1
        self._comp_left = self._mem_left = 0.0
        self._account: dict[int, tuple[Side, float]] = {}
        self._used = [0.0, 0.0]
        self._proposed: dict[int, Side] = {}
        self._plan = _NOTHING
        self._weight = self._hold = _NO_FLOATS
        self.demand = Demand()

    def load(self, plan: ScanOrder, dense: float | None = None) -> None:
        """Start over with a new order of waiting requests; running requests keep their accounts.

        Args:
            dense: density from which on requests count as compute side in `demand`; by default the root's.
        """
        self._plan = plan
        self._waiting = np.ones(len(plan.slots), np.bool_)
        self.num_waiting = len(plan.slots)
        self._place = dict(zip(plan.slots.tolist(), range(len(plan.slots)), strict=True))
        self._left, self._right = 0, len(plan.slots) - 1
        self._comp_left, self._mem_left = float(plan.comp.sum()), float(plan.mem.sum())
        self._proposed = {}
        dense = self.root_density if dense is None else dense
        self._weight = np.where(plan.density >= dense, plan.weight, 0.0)
        self._hold = self._weight * (plan.output + IDLE_STEPS)
        self.demand = Demand(float(self._weight.sum()), float(self._hold.sum()))

    @property
    def order(self) -> ScanOrder:
        """The order that was loaded, admitted requests included."""
        return self._plan

    @property
    def root_density(self) -> float:
        """rho of what still waits in the order; infinite when nothing of it decodes."""
        if self._mem_left > 0.0:
            return self._comp_left / self._mem_left
        return float("inf") if self._comp_left > 0.0 else 0.0

    @property
    def partition(self) -> Partition:
        """M_L and M_R at the cursors' present densities."""
        self._left, self._right = _advance(self._waiting, self._left, self._right)
        if self._left > self._right:
            return Partition(self.capacity / 2, self.capacity / 2)
        high, low = self._plan.density[self._left], self._plan.density[self._right]
        return partition_capacity(
            self.capacity, root=self.root_density, compute_side=max(high, low), memory_side=low
        )

    @property
    def used(self) -> Partition:
        """KV tokens that running requests count for on each side."""
        return Partition(*self._used)

    def propose(self, limit: int, quota: Quota | None = None, *, longest: int = UNLIMITED) -> list[int]:
        """Requests to admit next, at most `limit`, in order; nothing changes but the remembered sides.

        Args:
            quota: what the compute side may prefill in this step, instead of its share. Then everything as
                dense as the work that is left is compute side, unless its answer would end last.
            longest: output tokens that still fit beside what runs. The memory side's next is offered all the
                same, longer ones behind it are not: shorter ones fill what they cannot.
        """
        self._left, self._right = _advance(self._waiting, self._left, self._right)
        places, sides = _scan(
            self._waiting,
            self._plan.weight,
            self._plan.new_tokens,
            self._plan.density,
            self._left,
            self._right,
            self.root_density,
            self.capacity,
            self._used[0],
            self._used[1],
            min(max(limit, 0), self.num_waiting),
            -1 if quota is None else quota.tokens,
            np.inf if quota is None else quota.density,
            np.inf if quota is None else quota.late,
            self._plan.output,
            longest,
        )
        slots: list[int] = self._plan.slots[places].tolist()
        self._proposed = {slot: _SIDES[side] for slot, side in zip(slots, sides.tolist(), strict=True)}
        return slots

    def proposed_side(self, slot: int) -> Side | None:
        """Side from which the last `propose` offered a request; None if it did not."""
        return self._proposed.get(slot)

    def admit(self, slot: int, weight: float, side: Side) -> None:
        """A request starts running and counts for `weight` tokens on a side."""
        self._proposed.pop(slot, None)
        self.withdraw(slot)
        self._account[slot] = (side, weight)
        self._used[side] += weight

    def release(self, slot: int) -> None:
        """A running request ended, or went back to the queue; its share is free."""
        entry = self._account.pop(slot, None)
        if entry is not None:
            side, weight = entry
            self._used[side] -= weight
            if not self._account:
                self._used = [0.0, 0.0]  # no rounding residue may keep an idle side full

    def withdraw(self, slot: int) -> None:
        """A waiting request leaves the order (admitted or aborted)."""
        self._mark(slot, False)

    def forget(self, slot: int) -> None:
        """A request leaves for good, waiting or running; its slot may come back as another request."""
        self.withdraw(slot)
        self.release(slot)
        self._place.pop(slot, None)
        self._proposed.pop(slot, None)

    def restore(self, slot: int) -> None:
        """A request of the order waits again (retracted)."""
        self._mark(slot, True)

    def _mark(self, slot: int, waiting: bool) -> None:
        place = self._place.get(slot, -1)
        if place < 0 or self._waiting[place] == waiting:
            return
        self._waiting[place] = waiting
        sign = 1 if waiting else -1
        self.num_waiting += sign
        self._comp_left = max(self._comp_left + sign * float(self._plan.comp[place]), 0.0)
        self._mem_left = max(self._mem_left + sign * float(self._plan.mem[place]), 0.0)
        self.demand = Demand(
            max(self.demand.weight + sign * self._weight.item(place), 0.0),
            max(self.demand.hold + sign * self._hold.item(place), 0.0),
        )
        if waiting:
            self._left, self._right = min(self._left, place), max(self._right, place)

    def rebalance(self, slot: int, weight: float, *, outlived: bool) -> None:
        """Correct a running request's weight; one that outlived its estimate moves to the memory side.

        Paper 5.4: a compute-side request that turns out long behaves like a memory-side one, and the
        compute side gets its share back.
        """
        entry = self._account.get(slot)
        if entry is None:
            return
        side, old = entry
        self._used[side] -= old
        side = Side.MEMORY if outlived else side
        self._used[side] += weight
        self._account[slot] = (side, weight)

    def side(self, slot: int) -> Side:
        """Side of a running request.

        Raises:
            KeyError: it is not running.
        """
        return self._account[slot][0]


_NO_INTS, _NO_FLOATS = np.zeros(0, np.int64), np.zeros(0)
_NOTHING = ScanOrder(_NO_INTS, _NO_FLOATS, _NO_INTS, _NO_INTS, _NO_FLOATS, _NO_FLOATS, _NO_FLOATS)


def scan_to_the_end(plan: ScanOrder, capacity: float) -> tuple[Ints, Ints, Floats]:
    """The whole admission order against a clock of decoding steps, for planning without an engine.

    Returns:
        (slots, sides, steps), each (n,): who is admitted, from which side, at which decoding step.
    """
    places, sides, steps = _run_dry(
        plan.weight, plan.density, plan.output.astype(np.float64), plan.comp, plan.mem, float(capacity)
    )
    return plan.slots[places], sides, steps

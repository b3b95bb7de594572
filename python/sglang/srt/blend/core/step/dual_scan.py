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

from sglang.srt.blend.core.step.partition import (
    DENSEST,
    IDLE_STEPS,
    compute_share,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MEMORY_FIRST = 8
"""Memory-side requests proposed before the compute side: they take longest and cost least to prefill."""


class Side(IntEnum):
    """Which end of the density order a request was admitted from."""

    COMPUTE = 0
    MEMORY = 1


class Walk(NamedTuple):
    """The order that both cursors walk; arrays (n,), highest density first; see `ScanOrder`."""

    waiting: NDArray[np.bool_]
    density: Floats
    share: Floats
    new_tokens: Ints
    output: Ints


class Capacity(NamedTuple):
    """What is divided between the sides: KV tokens, and the density that both together should have."""

    tokens: float
    root_density: float


class Rules(NamedTuple):
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


class Cursors(NamedTuple):
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
def advance(waiting, left, right):  # type: ignore[no-untyped-def]
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
        left, right = advance(walk.waiting, left, right)
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
    return Cursors(left, right, end, skipping, compute, memory, taken)


@njit(cache=True)
def _take_memory_side(walk, capacity, rules, at, stop, positions, sides):  # type: ignore[no-untyped-def]
    """Propose from the right, up to `stop` in all, until the memory side's share is used up.

    Where the compute side is paced, the memory side ends where densities reach `rules.dense`. Behind the
    first request, answers that are too long to fit are skipped, and what would fit behind them ends where it
    would belong to the compute side.
    """
    left, right, end, skipping, compute, memory, taken = at
    while taken < stop:
        left, right = advance(walk.waiting, left, right)
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
    return Cursors(left, right, end, skipping, compute, memory, taken)


@njit(cache=True)
def propose(walk, capacity, rules, at):  # type: ignore[no-untyped-def]
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
def _run_dry(share, density, output, comp, mem, capacity, one_line):  # type: ignore[no-untyped-def]
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
        left, right = advance(waiting, left, right)
        root = comp_left / mem_left if mem_left > 0.0 else DENSEST
        rooms = _rooms(Capacity(capacity, root), density[left], density[right], used[0], used[1])
        if one_line:
            rooms = (capacity - used[0] if used[0] > 0.0 else 1.0, 0.0)
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
        one_line: whether requests go from the left alone.
        paced: whether prefill is spread over the steps where it can be.
        visits: whether requests in one line may begin as preemptible ones.
    """

    slots: Ints
    density: Floats
    new_tokens: Ints
    output: Ints
    share: Floats
    comp: Floats
    mem: Floats
    one_line: bool = False
    paced: bool = True
    visits: bool = False


def scan_to_the_end(order: ScanOrder, capacity: float) -> tuple[Ints, Ints, Floats]:
    """The whole admission order against a clock of decoding steps, for planning without an engine.

    Returns:
        (slots, sides, steps), each (n,): who is admitted, from which side, at which decoding step.
    """
    positions, sides, steps = _run_dry(
        order.share,
        order.density,
        order.output.astype(np.float64),
        order.comp,
        order.mem,
        float(capacity),
        order.one_line,
    )
    return order.slots[positions], sides, steps

"""The dual scanner's state: cursors over the last plan, and what each side uses (paper 5.3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.step.dual_scan import (
    Capacity,
    Cursors,
    Rules,
    ScanOrder,
    Side,
    Walk,
    advance,
    propose,
)
from sglang.srt.blend.core.step.pacing import Demand, Quota
from sglang.srt.blend.core.step.partition import IDLE_STEPS, Partition, partition_capacity

Floats = NDArray[np.float64]

_SIDES = tuple(Side)
_NO_INTS, _NO_FLOATS = np.zeros(0, np.int64), np.zeros(0)
_NOTHING = ScanOrder(_NO_INTS, _NO_FLOATS, _NO_INTS, _NO_INTS, _NO_FLOATS, _NO_FLOATS, _NO_FLOATS)


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

    def load(self, order: ScanOrder, dense: float | None = None, accept_length: float = 1.0) -> None:
        """Start over with a new order of waiting requests; running requests keep their accounts.

        Args:
            dense: density from which on requests count as compute side in `demand`; by default the root's.
            accept_length: output tokens that a step yields for each request.
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
        self._dense_token_steps = self._dense_share * (order.output / accept_length + IDLE_STEPS)
        self.demand = Demand(float(self._dense_share.sum()), float(self._dense_token_steps.sum()))

    @property
    def order(self) -> ScanOrder:
        """The order that was loaded, admitted requests included."""
        return self._order

    @property
    def one_line(self) -> bool:
        """Whether all that waits goes in one line."""
        return self._order.one_line and self.num_waiting > 0

    @property
    def visits(self) -> bool:
        """Whether what waits in one line may begin as preemptible requests."""
        return self._order.visits and self.one_line

    @property
    def paced(self) -> bool:
        """Whether what waits is spread over the steps where it can be."""
        return self._order.paced or not self.num_waiting

    @property
    def root_density(self) -> float:
        """Density of what still waits in the order; infinite when nothing of it decodes."""
        if self._mem_left > 0.0:
            return self._comp_left / self._mem_left
        return float("inf") if self._comp_left > 0.0 else 0.0

    @property
    def partition(self) -> Partition:
        """M_L and M_R in KV tokens, at the cursors' present densities (paper 5.3)."""
        self._left, self._right = advance(self._waiting, self._left, self._right)
        if self._left > self._right:
            return Partition(self.capacity / 2, self.capacity / 2)
        high, low = self._order.density[self._left], self._order.density[self._right]
        return partition_capacity(
            self.capacity, root=self.root_density, compute_side=max(high, low), memory_side=low
        )

    @property
    def compute_need(self) -> int:
        """KV tokens that the next request of the compute end comes to hold; 0 where nobody waits."""
        self._left, self._right = advance(self._waiting, self._left, self._right)
        if self._left > self._right:
            return 0
        return int(self._order.new_tokens[self._left] + self._order.output[self._left])

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
        self._left, self._right = advance(self._waiting, self._left, self._right)
        if order.one_line:
            return self._in_line(limit)
        positions, sides = propose(
            Walk(self._waiting, order.density, order.share, order.new_tokens, order.output),
            Capacity(self.capacity, self.root_density),
            Rules(
                limit=min(max(limit, 0), self.num_waiting),
                paced=quota is not None,
                quota=0 if quota is None else quota.tokens,
                dense=float("inf") if quota is None else quota.density,
                late=float("inf") if quota is None else quota.late,
                bounded=longest is not None,
                longest=0 if longest is None else longest,
            ),
            Cursors(self._left, self._right, self._right, False, self._used[0], self._used[1], 0),
        )
        slots: list[int] = order.slots[positions].tolist()
        self._proposed = {slot: _SIDES[side] for slot, side in zip(slots, sides.tolist(), strict=True)}
        return slots

    def _in_line(self, limit: int) -> list[int]:
        ahead = slice(self._left, self._right + 1)
        slots: list[int] = self._order.slots[ahead][self._waiting[ahead]][: max(limit, 0)].tolist()
        self._proposed = dict.fromkeys(slots, Side.COMPUTE)
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

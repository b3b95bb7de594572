"""Positions in the waiting queue survive whatever upstream does to it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blend.runtime.queue_order import QueueOrder


@dataclass(eq=False)
class Request:
    slot: int = -1
    waiting: bool = False


class Queue:
    """A waiting queue as upstream keeps it, and a registry of slots as the pool keeps it."""

    def __init__(self) -> None:
        self.items: list[Request] = []
        self.by_slot: dict[int, Request] = {}
        self.order = QueueOrder(lambda r: r.slot if r.waiting else -1)
        self.seen: list[Request] = []

    def register(self, arrivals: list[Request]) -> None:
        for request in arrivals:
            if request.slot < 0:
                request.slot = len(self.by_slot)
                self.by_slot[request.slot] = request
            request.waiting = True
            self.seen.append(request)

    def arrive(self, n: int) -> None:
        self.items += [Request() for _ in range(n)]

    def synchronise(self) -> None:
        self.order.synchronise(self.items, self.register)

    def admit(self, requests: list[Request]) -> None:
        """Upstream filters a step's admissions out of the queue, keeping the rest in order."""
        for request in requests:
            self.order.leave(request.slot)
            request.waiting = False
        gone = set(map(id, requests))
        self.items = [r for r in self.items if id(r) not in gone]


def test_proposals_stand_in_front_in_the_order_asked_for():
    queue = Queue()
    queue.arrive(10)
    queue.synchronise()
    queue.order.bring_to_front(queue.items, [7, 0, 9, 3])
    assert [r.slot for r in queue.items[:4]] == [7, 0, 9, 3]
    assert sorted(r.slot for r in queue.items) == list(range(10))


def test_admissions_and_arrivals_need_no_scan():
    queue = Queue()
    queue.arrive(1000)
    queue.synchronise()
    for step in range(50):
        waiting = [r.slot for r in queue.items]
        queue.order.bring_to_front(queue.items, waiting[-1:-8:-1])
        queue.admit(queue.items[1:6:2])
        queue.arrive(step % 3)
        queue.synchronise()
    assert queue.order.rebuilds == 0
    assert len(queue.order) == len(queue.items)


def test_an_abort_costs_one_scan_and_loses_nobody():
    queue = Queue()
    queue.arrive(20)
    queue.synchronise()
    victim = queue.items.pop(4)
    queue.order.drop(victim.slot)
    queue.synchronise()
    assert queue.order.rebuilds == 1
    queue.order.bring_to_front(queue.items, [19, 5])
    assert [r.slot for r in queue.items[:2]] == [19, 5]


def test_a_request_taken_out_unannounced_is_noticed():
    queue = Queue()
    queue.arrive(20)
    queue.synchronise()
    queue.items.pop(4)
    queue.synchronise()
    assert queue.order.rebuilds == 1


def test_a_slot_that_is_not_queued_is_refused_without_losing_anyone():
    queue = Queue()
    queue.arrive(5)
    queue.synchronise()
    with pytest.raises(LookupError, match="slot 77"):
        queue.order.bring_to_front(queue.items, [3, 77])
    assert sorted(r.slot for r in queue.items) == [0, 1, 2, 3, 4]


events = st.lists(
    st.tuples(st.sampled_from(["arrive", "step", "abort", "vanish", "return"]), st.integers(0, 10**6)),
    max_size=60,
)


@given(events)
def test_positions_are_exact_after_any_history(history):
    """Arrivals, steps, announced and unannounced departures, and requests that come back."""
    queue = Queue()
    left: list[Request] = []
    for event, value in history:
        if event == "arrive":
            queue.arrive(value % 4)
        elif event == "step":
            queue.synchronise()
            waiting = [r.slot for r in queue.items]
            k = min(len(waiting), value % 5)
            start = value % (len(waiting) - k + 1)
            queue.order.bring_to_front(queue.items, waiting[start : start + k])
            chosen = [r for i, r in enumerate(queue.items[:k]) if (value >> i) & 1]
            left += chosen
            queue.admit(chosen)
        elif event in ("abort", "vanish") and queue.items:
            gone = queue.items.pop(value % len(queue.items))
            if event == "abort" and gone.waiting:
                queue.order.drop(gone.slot)
            gone.waiting = False
        elif event == "return" and left:
            queue.items.append(left.pop(value % len(left)))
    queue.synchronise()
    assert len(queue.order) == len(queue.items)
    slots = [r.slot for r in queue.items]
    assert len(set(slots)) == len(slots)
    queue.order.bring_to_front(queue.items, slots[::-1])
    assert [r.slot for r in queue.items] == slots[::-1]

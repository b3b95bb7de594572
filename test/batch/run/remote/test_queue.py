"""A queue gives requests out in the planner's order, and loses none."""

import asyncio
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from sglang.batch.run.remote.dispatched import GPU, LLAMA_3_8B
from sglang.batch.run.remote.prompt import Prompt
from sglang.batch.run.remote.queue import PlannedQueue, Ticket
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.planner import Planner

COST = CostModel(LLAMA_3_8B, load_hardware(GPU))
CAPACITY = 5000  # tokens


def prompts(groups: int, each: int, *, known: int) -> list[Prompt]:
    """Questions about documents of 400 tokens, one of each document after the other."""
    found = []
    for question in range(each):
        for group in range(groups):
            tokens = np.array([*range(1000 * group, 1000 * group + 400), 500_000 + question], np.int32)
            output = known * (1 + group)
            found.append(Prompt(tokens, output, output))
    return found


def inside_a_loop(test: Callable[[], None]) -> Callable[[], None]:
    async def run() -> None:
        test()

    def wrapped() -> None:
        asyncio.run(run())

    wrapped.__name__ = test.__name__
    return wrapped


def group_of(ticket: Ticket) -> int:
    return int(ticket.prompt.tokens[0]) // 1000


def drain(queue: PlannedQueue) -> list[Ticket]:
    return [queue.pop() for _ in range(len(queue))]


@inside_a_loop
def test_the_order_is_the_planners() -> None:
    pool = prompts(4, 5, known=20)
    queue = PlannedQueue(COST, CAPACITY)
    tickets = [Ticket(prompt) for prompt in pool]
    queue.add(tickets)
    planner = Planner(COST, kv_capacity=CAPACITY)
    slots = planner.add(
        np.concatenate([prompt.tokens for prompt in pool]),
        np.arange(len(pool) + 1) * 401,
        max_new_tokens=np.array([prompt.max_new for prompt in pool]),
        known_output=np.array([prompt.known for prompt in pool]),
    )
    by_slot = dict(zip(slots.tolist(), tickets, strict=True))
    assert drain(queue) == [by_slot[slot] for slot in planner.plan().slots.tolist()]
    with pytest.raises(IndexError):
        queue.pop()


@inside_a_loop
def test_questions_about_one_document_follow_each_other() -> None:
    queue = PlannedQueue(COST, CAPACITY)
    queue.add(Ticket(prompt) for prompt in prompts(2, 20, known=20))
    groups = [group_of(ticket) for ticket in drain(queue)]
    changes = sum(one != other for one, other in pairwise(groups))
    # Both ends are taken from in turns, so groups may alternate; as they were added they all would.
    assert changes < 20


@inside_a_loop
def test_what_is_tried_again_goes_first() -> None:
    queue = PlannedQueue(COST, CAPACITY)
    queue.add(Ticket(prompt) for prompt in prompts(3, 3, known=5))
    ticket = queue.pop()
    queue.add_again(ticket)
    assert len(queue) == 9
    assert queue.pop() is ticket
    assert len(queue) == 8


@inside_a_loop
def test_whoever_leaves_does_not_come_up_again() -> None:
    queue = PlannedQueue(COST, CAPACITY)
    tickets = [Ticket(prompt) for prompt in prompts(3, 4, known=5)]
    queue.add(tickets[:6])
    queue.remove(tickets[0])  # not planned yet
    running = queue.pop()
    waiting = next(ticket for ticket in tickets[1:6] if ticket is not running)
    queue.remove(waiting)
    queue.add(tickets[6:])
    queue.remove(running)
    left = drain(queue)
    assert len(left) == 12 - 3
    assert set(left) == set(tickets) - {tickets[0], running, waiting}


@inside_a_loop
def test_documents_that_have_not_begun_are_stolen_whole() -> None:
    queue, thief = PlannedQueue(COST, CAPACITY), PlannedQueue(COST, CAPACITY)
    tickets = [Ticket(prompt) for prompt in prompts(12, 6, known=10)]
    queue.add(tickets)
    begun = group_of(queue.pop())
    gone = queue.stolen(thief, speed=1.0, thief_speed=1.0)
    assert all(ticket.queue is None for ticket in gone)
    groups = [group_of(ticket) for ticket in gone]
    assert begun not in groups
    assert 2 <= len(set(groups)) <= 8
    assert all(groups.count(group) == 6 for group in groups)
    thief.add(gone)
    assert thief.seconds == pytest.approx(queue.seconds, rel=0.3)
    assert len(gone) + len(drain(queue)) == 71


@inside_a_loop
def test_a_slow_thief_takes_less() -> None:
    taken = []
    for speed in (0.25, 1.0, 4.0):
        queue = PlannedQueue(COST, CAPACITY)
        queue.add(Ticket(prompt) for prompt in prompts(40, 3, known=2))
        taken.append(len(queue.stolen(PlannedQueue(COST, CAPACITY), speed=1.0, thief_speed=speed)))
    assert 0 < taken[0] < taken[1] < taken[2] < 120


@inside_a_loop
def test_all_is_taken_back_but_what_runs() -> None:
    queue = PlannedQueue(COST, CAPACITY)
    queue.add(Ticket(prompt) for prompt in prompts(3, 3, known=5))
    again, running = queue.pop(), queue.pop()
    queue.add_again(again)
    gone = queue.take_back()
    assert len(gone) == 8
    assert again in gone
    assert running not in gone
    assert len(queue) == 0


@inside_a_loop
def test_late_arrivals_are_not_left_behind() -> None:
    """One more request does not pay a new plan; it waits all the same."""
    queue, other = PlannedQueue(COST, CAPACITY), PlannedQueue(COST, CAPACITY)
    for one in (queue, other):
        one.add(Ticket(prompt) for prompt in prompts(4, 50, known=5))
        one.pop()
        one.add([Ticket(prompts(1, 1, known=5)[0])])
    assert len(drain(queue)) == 200
    assert len(other.take_back()) == 200


@inside_a_loop
def test_answers_teach_the_planner_how_long_others_will_be() -> None:
    queue = PlannedQueue(COST, 100_000)
    pool = [prompt._replace(max_new=4000, known=0) for prompt in prompts(2, 400, known=1)]
    tickets = [Ticket(prompt) for prompt in pool]
    queue.add(tickets)
    for _ in range(300):
        ticket = queue.pop()
        queue.finished(ticket, 2 if group_of(ticket) else 3000)
        queue.remove(ticket)
    queue.pop()
    estimate = queue._planner.table.estimate
    waiting = [ticket for ticket in tickets if ticket.queue is queue]
    assert {int(estimate[ticket.slot]) for ticket in waiting if group_of(ticket)} == {2}
    long = [int(estimate[ticket.slot]) for ticket in waiting if not group_of(ticket)]
    assert long == pytest.approx([3000] * len(long), rel=0.1)
    assert long

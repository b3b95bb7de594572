"""Requests that wait for a server, in the order of the planner that SGLang's scheduler has under blend."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from sglang.batch.run.remote.prompt import Prompt
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.order.stealing import Backlog, steal
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree
from sglang.srt.blend.core.pool.request_table import State


@dataclass(eq=False, slots=True)
class Ticket:
    """A request on its way to an answer.

    Attributes:
        prompt: what the planner knows of it.
        turn: completed with the server that it may be sent to, or with the reason why none will come.
        attempts: times that it was sent.
        slot: its number in the planner of its queue; -1 while no planner has it.
        queue: where it waits or whence it was sent; None if nowhere.
        sent: whether a server has it now.
        work: modelled seconds, of compute and of memory traffic.
    """

    prompt: Prompt
    turn: asyncio.Future[object] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    attempts: int = 0
    slot: int = -1
    queue: PlannedQueue | None = None
    sent: bool = False
    work: float = 0.0


class PlannedQueue:
    """The requests of one server: those that wait, in order, and those that run there.

    Args:
        kv_capacity: tokens that the server holds, or a guess.
    """

    def __init__(self, cost: CostModel, kv_capacity: int) -> None:
        self._planner = Planner(cost, kv_capacity=kv_capacity)
        self._tickets: dict[int, Ticket] = {}
        self._order: deque[Ticket] = deque()
        self._again: deque[Ticket] = deque()
        self._new: dict[Ticket, None] = {}

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._new) + len(self._again) + self._planner.table.num_waiting

    def add(self, tickets: Iterable[Ticket]) -> None:
        """Requests wait here from now on."""
        for ticket in tickets:
            ticket.queue = self
            self._new[ticket] = None

    def add_again(self, ticket: Ticket) -> None:
        """A request that was sent in vain waits once more, before all others: its prefix is in use."""
        self._again.append(ticket)

    def pop(self) -> Ticket:
        """The next request in order, which runs from now on; IndexError if none waits."""
        if self._again:
            return self._again.popleft()
        self._take_in()
        if self._planner.stale:
            self._plan()
        while True:
            if not self._order:
                self._plan()  # late arrivals are in no plan yet
            ticket = self._order.popleft()
            if self._waits(ticket):
                self._planner.admit(ticket.slot)
                return ticket

    def pop_unplanned(self) -> Ticket:
        """Take any request that waits, new ones as they came; the planner does not hear of those."""
        if self._again or not self._new:
            return self.pop()
        ticket = next(iter(self._new))
        del self._new[ticket]
        return ticket

    def take_back(self) -> list[Ticket]:
        """Give away all that wait, in order."""
        self._take_in()
        self._plan()
        leaving = [*self._again, *(ticket for ticket in self._order if self._waits(ticket))]
        self._again.clear()
        for ticket in leaving:
            self.remove(ticket)
        return leaving

    def stolen(self, thief: PlannedQueue, *, speed: float, thief_speed: float) -> list[Ticket]:
        """Give away subtrees of which nothing has been sent, if both then end before this one would have.

        Args:
            thief: of whom they are for.
            speed, thief_speed: modelled seconds that the servers get done in a second.

        Returns:
            The requests, which are in no queue now, in order; none if it does not pay.
        """
        self._take_in()
        self._plan()
        slots, tree = self._planner.pool.open_tree(self._planner.cost_model)
        table = self._planner.table
        again = np.array([ticket.slot for ticket in self._again], np.int64)
        theft = steal(
            tree,
            self._planner.cost_model,
            (table.state[slots] == State.WAITING) & ~np.isin(slots, again),
            victim=Backlog(_seconds(tree), speed),
            thief=Backlog(thief.seconds, thief_speed),
        )
        chosen = set(slots[theft.requests].tolist())
        leaving = [ticket for ticket in self._order if ticket.slot in chosen]
        for ticket in leaving:
            self.remove(ticket)
        return leaving

    @property
    def seconds(self) -> float:
        """Modelled seconds of all that waits or runs, each shared prefix once."""
        self._take_in()
        self._planner.refresh()
        return _seconds(self._planner.pool.open_tree(self._planner.cost_model)[1])

    def finished(self, ticket: Ticket, output: int) -> None:
        """The planner learns from the answer to a request, so many tokens; `remove` comes next."""
        if ticket.slot >= 0:
            self._planner.observe(ticket.slot, max(output, 1))

    def remove(self, ticket: Ticket) -> None:
        """A request of this queue leaves, waiting or running."""
        assert ticket.queue is self
        self._new.pop(ticket, None)
        if ticket in self._again:
            self._again.remove(ticket)
        if ticket.slot >= 0:
            del self._tickets[ticket.slot]
            self._planner.remove(ticket.slot)
        ticket.slot, ticket.queue = -1, None

    def _waits(self, ticket: Ticket) -> bool:
        return ticket.queue is self and self._planner.table.state[ticket.slot] == State.WAITING

    def _plan(self) -> None:
        waits = self._planner.table.num_waiting
        order = self._planner.plan().slots.tolist() if waits else ()
        self._order = deque(self._tickets[slot] for slot in order)

    def _take_in(self) -> None:
        """Let the planner know of new requests."""
        if self._new:
            prompts = [ticket.prompt for ticket in self._new]
            lengths = [len(prompt.tokens) for prompt in prompts]
            slots = self._planner.add(
                np.concatenate([prompt.tokens for prompt in prompts]),
                np.concatenate([[0], np.cumsum(lengths)]),
                max_new_tokens=np.array([prompt.max_new for prompt in prompts]),
                known_output=np.array([prompt.known for prompt in prompts]),
            )
            for ticket, slot in zip(self._new, slots.tolist(), strict=True):
                ticket.slot = slot
                self._tickets[slot] = ticket
            self._new = {}


def _seconds(tree: ResourceAwarePrefixTree) -> float:
    return float((tree.comp - tree.saved + tree.mem).sum())

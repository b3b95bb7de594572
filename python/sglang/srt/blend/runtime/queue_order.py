"""Where each request stands in upstream's waiting queue, so that a few can be moved without a scan.

Upstream owns the queue (a list): it appends arrivals, filters admitted requests out after every prefill,
pops aborted ones. We only swap the requests to admit next to the front. The rest may stand in any order,
because the planner knows the order. Three facts keep the bookkeeping small:

* arrivals are the tail beyond what was known at the last look;
* admitted requests leave from the front, so everything behind the front moves up by their number;
* anything else (an abort, another policy's hand) is noticed at the last known request, which is then
  not where it should be: the positions are rebuilt by one scan, and the rebuild is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sglang.srt.blend.runtime.request import Request

Slot = int


class QueueOrder:
    """Positions of the requests of one queue.

    Args:
        slot_of: slot of a request, negative when it is not known as waiting.

    Attributes:
        rebuilds: scans of the whole queue so far.
    """

    def __init__(self, slot_of: Callable[[Request], Slot]) -> None:
        self.rebuilds = 0
        self._slot_of = slot_of
        self._index: dict[Slot, int] = {}  # in the queue, plus _shift
        self._shift = 0  # requests that have left from the front
        self._known = 0  # requests of the queue that have an index
        self._front = 0  # of which the first so many may leave
        self._left = 0  # how many of these have left since
        self._last: Request | None = None  # the last known request
        self._disturbed = False

    def synchronise(self, queue: Sequence[Request], register: Callable[[list[Request]], None]) -> None:
        """Catch up with what upstream did to the queue.

        Args:
            register: called once with the arrivals, in order, if there are any; must give them slots.
        """
        known, front = self._known - self._left, self._front - self._left
        self._shift += self._left
        self._left = 0
        if self._disturbed or not self._agrees(queue, known, front):
            self._rebuild(queue, register)
            return
        if known < len(queue):
            register(list(queue[known:]))
            self._number(queue, known)
        self._note_front(queue, front=0)

    def bring_to_front(self, queue: list[Request], slots: Sequence[Slot]) -> None:
        """Swap waiting requests to the front of the queue, in this order; O(len(slots)).

        Raises:
            LookupError: a slot is not in the queue; nothing has been lost or duplicated.
        """
        for index, slot in enumerate(slots):
            at = self._index.get(slot, -1) - self._shift
            if not 0 <= at < len(queue) or self._slot_of(queue[at]) != slot:
                self._disturbed = True
                raise LookupError(f"slot {slot} is not at index {at} of the waiting queue")
            if at != index:
                queue[index], queue[at] = queue[at], queue[index]
                self._index[self._slot_of(queue[at])] = at + self._shift
                self._index[slot] = index + self._shift
        self._note_front(queue, front=len(slots))

    def sort(self, queue: list[Request], key: Callable[[Request], tuple[int, int]]) -> None:
        """Order a short queue entirely; all of it is the front."""
        queue.sort(key=key)
        self._number(queue, 0)
        self._note_front(queue, front=len(queue))

    def in_front(self, slot: Slot) -> bool:
        """Whether the request is among those last brought to the front."""
        return 0 <= self._index.get(slot, -1) - self._shift < self._front

    def leave(self, slot: Slot) -> None:
        """A request is admitted: upstream will take it out of the queue."""
        if self.in_front(slot):
            self._left += 1
        else:
            self._disturbed = True
        self._index.pop(slot, None)

    def drop(self, slot: Slot) -> None:
        """A request is aborted: upstream takes it out from wherever it stands."""
        if self._index.pop(slot, -1) >= 0:
            self._disturbed = True

    def _agrees(self, queue: Sequence[Request], known: int, front: int) -> bool:
        if known > len(queue) or (known > front and queue[known - 1] is not self._last):
            return False
        for index in range(front):
            slot = self._slot_of(queue[index])
            if slot not in self._index:
                return False
            self._index[slot] = index + self._shift
        return True

    def _rebuild(self, queue: Sequence[Request], register: Callable[[list[Request]], None]) -> None:
        self.rebuilds += 1
        self._disturbed = False
        arrivals = [request for request in queue if self._slot_of(request) < 0]
        if arrivals:
            register(arrivals)
        self._index, self._shift = {}, 0
        self._number(queue, 0)
        self._note_front(queue, front=0)

    def _number(self, queue: Sequence[Request], start: int) -> None:
        for index in range(start, len(queue)):
            self._index[self._slot_of(queue[index])] = index + self._shift

    def _note_front(self, queue: Sequence[Request], *, front: int) -> None:
        self._known, self._front = len(queue), front
        self._last = queue[-1] if queue else None

    def __contains__(self, slot: Slot) -> bool:
        return slot in self._index

    def __len__(self) -> int:
        return len(self._index)

"""The priority classes of waiting requests: who is urgent, and whom to propose where there are several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.pool.request_table import State

URGENT = 1 << 61
"""Requests of a priority of at least this (or of at most its negative, where low values go first) are those
that somebody waits for: nothing else begins until none of them waits."""


class Priorities:
    """Classes of the requests that wait in a planner.

    Args:
        sign: 1 when low priority values come first, -1 when high ones do, 0 without priorities.
    """

    def __init__(self, planner: Planner, sign: int) -> None:
        self._planner, self._sign = planner, sign
        self._priority = np.zeros(0, np.int64)  # by slot
        self._classes: Counter[int] = Counter()  # waiting requests of each priority

    def joins(self, slot: int, priority: int | None) -> None:
        """A request waits from now on; its priority is the user's, None without one."""
        missing = slot + 1 - len(self._priority)
        if missing > 0:
            more = np.zeros(max(missing, len(self._priority)), np.int64)
            self._priority = np.concatenate([self._priority, more])
        value = (priority or 0) if self._sign else 0
        self._priority[slot] = value
        self._classes[value] += 1

    def leaves(self, slot: int) -> None:
        """A request waits no longer."""
        value = int(self._priority[slot])
        self._classes[value] -= 1
        if not self._classes[value]:
            del self._classes[value]

    @property
    def differ(self) -> bool:
        """Whether there is more than one class."""
        return len(self._classes) > 1

    def arrival_key(self, slot: int) -> tuple[int, int]:
        """Sorts requests by class, and each class by arrival."""
        return int(self._priority[slot]) * self._sign, int(self._planner.table.sequence[slot])

    def urgent(self) -> list[int]:
        """Slots of waiting requests whose priority is beyond URGENT, in order of arrival."""
        urgent = [value for value in self._classes if value * self._sign <= -URGENT]
        if not urgent:
            return []
        table = self._planner.table
        slots = np.flatnonzero(table.state == State.WAITING)
        slots = slots[np.isin(self._priority[slots], urgent)]
        in_order: list[int] = slots[np.argsort(table.sequence[slots])].tolist()
        return in_order

    def choose(self, limit: int, due: Sequence[int] = ()) -> list[int]:
        """Waiting requests, class after class; within a class from both ends of the plan.

        Nobody is chosen behind those of a class that are due.
        """
        table, order = self._planner.table, self._planner.order
        order = order[table.state[order] == State.WAITING]
        chosen: list[int] = []
        for value in sorted(self._classes, key=lambda value: value * self._sign):
            late = [slot for slot in due if self._priority[slot] == value]
            if late:
                return chosen + late[: limit - len(chosen)]
            members = order[self._priority[order] == value]
            missing = self._classes[value] - len(members)
            chosen += _both_ends(members, limit - len(chosen))
            if missing and len(chosen) < limit:
                chosen += self._unplanned(value, chosen, limit - len(chosen))
            if len(chosen) >= limit:
                break
        return chosen

    def _unplanned(self, value: int, planned: list[int], limit: int) -> list[int]:
        """Members of a class that arrived after the last plan, in order of arrival."""
        table = self._planner.table
        slots = np.flatnonzero(table.state == State.WAITING)
        slots = slots[(self._priority[slots] == value) & ~np.isin(slots, planned)]
        first: list[int] = slots[np.argsort(table.sequence[slots])[:limit]].tolist()
        return first


def _both_ends(slots: NDArray[np.int64], limit: int) -> list[int]:
    """Alternately from the compute end and the memory end of an ordered class."""
    n = min(len(slots), limit)
    chosen = np.empty(n, np.int64)
    chosen[0::2] = slots[: (n + 1) // 2]
    chosen[1::2] = slots[::-1][: n // 2]
    return [int(slot) for slot in chosen]

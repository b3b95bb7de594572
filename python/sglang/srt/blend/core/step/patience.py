"""How long a request may be passed over: a bound on waiting under any stream (beyond the paper)."""

from __future__ import annotations

import numpy as np

from sglang.srt.blend.core.pool.request_table import RequestTable, State


class Patience:
    """Says who has been passed over for so long that it goes first.

    A round begins with the n requests that wait then. After `factor` times n admissions, whoever they were,
    those of the n that still wait are due. When none of them is left, the next round begins. A pool that is
    there before its first step is admitted within one round, so nobody of it is due.

    Args:
        table: who waits.
        factor: admissions of a round, per request that waits when it begins; 0 or more.
    """

    def __init__(self, table: RequestTable, factor: float) -> None:
        self._table, self._factor = table, factor
        self._until = 0.0  # admissions after which the round's requests are due
        self._arrived = 0  # arrivals before the round began

    def due(self, admissions: int) -> list[int]:
        """Slots that go before all others, in order of arrival.

        Args:
            admissions: since the start, those after retractions included.
        """
        if admissions < self._until:
            return []
        table = self._table
        slots = np.flatnonzero((table.state == State.WAITING) & (table.sequence < self._arrived))
        if not len(slots):
            self._arrived = table.arrived
            self._until = admissions + self._factor * table.num_waiting if table.num_waiting else 0.0
        in_order: list[int] = slots[np.argsort(table.sequence[slots])].tolist()
        return in_order

"""How often, and how fast, an engine that dies is started again."""

from __future__ import annotations

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the first restart and at most: doubled with each death that no answer came before."""


class Restarts:
    """Counts an engine's deaths in a row: those between which it has answered nothing.

    >>> restarts = Restarts(most=2)
    >>> [restarts.died(answered) for answered in (0, 0, 7, 7, 7)]
    [1.0, 2.0, 1.0, 2.0, None]

    Args:
        most: in a row.

    Attributes:
        in_a_row: deaths since the last answer.
    """

    def __init__(self, most: int) -> None:
        self.in_a_row = 0
        self._most = most
        self._answered = 0

    def died(self, answered: int) -> float | None:
        """Take note of a death.

        Args:
            answered: lines that have their record by now, over the whole run.

        Returns:
            Seconds to wait before the engine is started again; None if it is not to be.
        """
        if answered > self._answered:
            self.in_a_row, self._answered = 0, answered
        self.in_a_row += 1
        if self.in_a_row > self._most:
            return None
        return float(min(FIRST_WAIT * 2 ** (self.in_a_row - 1), LONGEST_WAIT))

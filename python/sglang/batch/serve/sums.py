"""Sums over the files and batches of a store, for metrics and quotas."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from sglang.batch.run.tally import Tally

OPEN = ("validating", "in_progress", "finalizing", "cancelling")
"""States of a batch that something is still to be done for."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over batches: lines by how they ended, and tokens as `Tally` counts them."""

    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Tally | Totals) -> Totals:
        return Totals(
            self.answered + other.answered,
            self.failed + other.failed,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
        )


class Sums:
    """Sums, as they are now.

    Args:
        db: the store's.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def stored_bytes(self, owner: str | None = None) -> int:
        """Count the bytes of files; of one owner, if one is given."""
        query = "SELECT COALESCE(SUM(bytes), 0) FROM file WHERE NOT deleted AND (? IS NULL OR owner = ?)"
        return int(self._db.execute(query, (owner, owner)).fetchone()[0])

    def batches_by_status(self) -> dict[str, int]:
        """Count batches by their state."""
        return dict(self._db.execute("SELECT status, COUNT(*) FROM batch GROUP BY status").fetchall())

    def ended_totals(self) -> Totals:
        """Sum up the batches that have ended."""
        marks = ", ".join("?" * len(OPEN))
        sums = ", ".join(
            f"COALESCE(SUM(json_extract({column}, '$.{name}')), 0)"
            for column, name in (
                ("counts", "completed"),
                ("counts", "failed"),
                ("usage", "input_tokens"),
                ("usage", "input_tokens_details.cached_tokens"),
                ("usage", "output_tokens"),
            )
        )
        return Totals(
            *self._db.execute(f"SELECT {sums} FROM batch WHERE status NOT IN ({marks})", OPEN).fetchone()
        )

    def tokens_since(self, owner: str, since: int) -> int:
        """Count the tokens, in and out, of an owner's batches that ended at `since` (seconds) or later."""
        query = (
            "SELECT COALESCE(SUM(json_extract(usage, '$.total_tokens')), 0) FROM batch WHERE owner = ?"
            " AND COALESCE(completed_at, cancelled_at, expired_at, 0) >= ?"
        )
        return int(self._db.execute(query, (owner, since)).fetchone()[0])

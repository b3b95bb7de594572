"""Which of any number of lines have been there before, in bounded memory."""

from __future__ import annotations

import sqlite3
from types import TracebackType

CACHE_KIB = 8_000
"""Memory for digests, about 200,000 of them; beyond it they are in a file of SQLite's that has no name."""


class Seen:
    """A set of digests, 16 bytes each; gone when it is closed."""

    def __init__(self) -> None:
        # Of a generator, whoever drops it last may be another thread.
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in (
            f"PRAGMA cache_size = -{CACHE_KIB}",
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID",
            "BEGIN",
        ):
            self._db.execute(statement)

    def add(self, digest: bytes) -> bool:
        """Add a digest; returns whether it is new.

        Raises:
            sqlite3.Error: the disk for temporary files is full.
        """
        return self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1

    def __enter__(self) -> Seen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

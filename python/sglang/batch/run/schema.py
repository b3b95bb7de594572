"""The journal's tables, and the opening of a file that has them; docs/batch.md describes the columns."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = 3
"""`PRAGMA user_version` of the schema below."""

APPLICATION_ID = 0x73676C62
"""`PRAGMA application_id`: "sglb"."""

BUSY_SECONDS = 60.0
"""Seconds that a transaction waits for another connection's."""

SCHEMA = """
CREATE TABLE job (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE line (
  position INTEGER PRIMARY KEY,
  input INTEGER NOT NULL, number INTEGER NOT NULL,
  offset INTEGER NOT NULL, length INTEGER NOT NULL,
  hash BLOB NOT NULL,
  custom_id BLOB,
  state INTEGER NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0, crashes INTEGER NOT NULL DEFAULT 0,
  log INTEGER, record_offset INTEGER, record_length INTEGER,
  code TEXT,
  prompt_tokens INTEGER, cached_tokens INTEGER, completion_tokens INTEGER,
  key BLOB, same_as INTEGER, reasoning_tokens INTEGER
) STRICT;
CREATE INDEX pending ON line (position) WHERE state = 0;
CREATE INDEX quarantined ON line (position) WHERE state = 4;
CREATE INDEX custom_id ON line (custom_id, position) WHERE custom_id IS NOT NULL;
CREATE INDEX key ON line (key, position) WHERE key IS NOT NULL;
CREATE TABLE event (seconds REAL NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL) STRICT
"""

MIGRATIONS = {
    1: """
ALTER TABLE line ADD COLUMN key BLOB;
ALTER TABLE line ADD COLUMN same_as INTEGER;
CREATE INDEX key ON line (key, position) WHERE key IS NOT NULL
""",
    2: "ALTER TABLE line ADD COLUMN reasoning_tokens INTEGER",
}
"""What leads from each older version to the next."""


class JournalUnusable(Exception):
    """A file is no journal of ours, is damaged, or was written by another version; the message says which."""


class JournalUnfinished(JournalUnusable):
    """A journal whose making was interrupted: nothing is in it."""


def connect(path: Path, *, create: bool, read_only: bool) -> sqlite3.Connection:
    """Open a journal's database; one of an older version gets the tables of this one first.

    Args:
        create: make a new file, mode 0600, where there must be none.
        read_only: change nothing.

    Raises:
        JournalUnusable: the file is no journal that this version can use.
    """
    if create:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR, 0o600))
    name = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rw'}"
    db = sqlite3.connect(name, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        if create:
            _make(db)
        else:
            _check_ours(db, path)
        if not read_only:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
        _migrate(db, path, read_only=read_only)
    except BaseException as error:
        db.close()
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            raise JournalUnusable(f"{path}: is damaged or no journal ({error})") from error
        raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Do everything in the block, or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _make(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    with transaction(db):
        for statement in SCHEMA.split(";"):
            db.execute(statement)
        # Last, and in the transaction: a file without it was never finished.
        db.execute(f"PRAGMA user_version = {VERSION}")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _check_ours(db: sqlite3.Connection, path: Path) -> None:
    version = _version(db)
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if version == 0 and (application == APPLICATION_ID or (application == 0 and not tables)):
        raise JournalUnfinished(f"{path}: was never finished")
    if application != APPLICATION_ID or version > VERSION:
        problem = "is no journal of sglang-batch"
        if application == APPLICATION_ID:
            problem = f"was written by a newer sglang-batch (journal version {version}, here {VERSION})"
        raise JournalUnusable(f"{path}: {problem}")
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise JournalUnusable(f"{path}: is damaged ({found})")


def _migrate(db: sqlite3.Connection, path: Path, *, read_only: bool) -> None:
    version = _version(db)
    if version == VERSION:
        return
    if read_only:
        raise JournalUnusable(
            f"{path}: was written by an older sglang-batch (journal version {version}, here {VERSION});"
            " the next `sglang-batch run` brings it up to date"
        )
    with transaction(db):
        for old in range(version, VERSION):
            for statement in MIGRATIONS[old].split(";"):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")

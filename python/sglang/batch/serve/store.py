"""What the service keeps: files and batches, in an SQLite file and a folder for each.

`ROOT/files/ID` is the content of an upload; `ROOT/batches/ID/` are the files of a batch's job. A row is
written after the files that it names and removed before them, so that a kill leaves files without a row at
most, which the next start clears. Ids are random, and paths are made of those that a row has.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang.batch.run.files import sync_folder
from sglang.batch.run.schema import BUSY_SECONDS, transaction
from sglang.batch.serve.sums import OPEN, Sums
from sglang.batch.usage import BadUsage

APPLICATION_ID = 0x73676273
VERSION = 1

REPEAT_SECONDS = 1800
"""A batch that is created again within so many seconds, with the same parameters, is the same: OpenAI's
clients wait ten minutes for a reply, and ask three times."""

SCHEMA = """
CREATE TABLE service (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE file (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, filename TEXT NOT NULL,
  bytes INTEGER NOT NULL, purpose TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER,
  path TEXT NOT NULL, deleted INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX file_owner ON file (owner, seq);
CREATE TABLE batch (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, request TEXT NOT NULL,
  status TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, in_progress_at INTEGER,
  finalizing_at INTEGER, completed_at INTEGER, failed_at INTEGER, expired_at INTEGER, cancelling_at INTEGER,
  cancelled_at INTEGER, model TEXT, output_file_id TEXT, error_file_id TEXT, counts TEXT NOT NULL,
  usage TEXT, errors TEXT) STRICT;
CREATE INDEX batch_owner ON batch (owner, seq);
CREATE INDEX batch_status ON batch (status)
"""

FILE = "seq, id, owner, filename, bytes, purpose, created_at, expires_at, path"
TIMES = (
    "created_at", "expires_at", "in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at",
    "cancelling_at", "cancelled_at",
)  # fmt: skip
BATCH = (
    f"seq, id, owner, request, status, {', '.join(TIMES)}, model, output_file_id, error_file_id,"
    " counts, usage, errors"
)


class NotFound(Exception):
    """There is no such thing, or it is somebody else's."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file; times are seconds since 1970, `path` is relative to the store."""

    seq: int
    id: str
    owner: str
    filename: str
    bytes: int
    purpose: str
    created_at: int
    expires_at: int | None
    path: str


@dataclass(frozen=True, slots=True)
class CreateBatch:
    """What a batch was created with.

    Attributes:
        window: seconds, as `completion_window` says.
        output_expires: seconds from the end of the batch that its files are kept; None for ever.
    """

    input_file_id: str
    endpoint: str
    completion_window: str
    window: int
    metadata: dict[str, str] | None
    output_expires: int | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Lines of a batch: all, answered, and with an error record."""

    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch.

    Attributes:
        times: seconds since 1970 by the names in `TIMES`.
        usage: tokens, as the API has them; None before the end.
        errors: why it failed, as the API has it.
    """

    seq: int
    id: str
    owner: str
    request: CreateBatch
    status: str
    times: dict[str, int | None]
    model: str | None
    output_file_id: str | None
    error_file_id: str | None
    counts: Counts
    usage: dict[str, Any] | None
    errors: list[dict[str, Any]] | None


class Store:
    """The store in a folder, made if it is not there; used by one thread.

    Raises:
        BadUsage: the folder is somebody else's, or its database no store that this version can use.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        try:
            self.root.mkdir(mode=0o700, exist_ok=True)
            if self.root.stat().st_uid != os.geteuid():
                raise BadUsage(f"--store {root}: belongs to somebody else; choose another folder")
            self.root.chmod(0o700)
            for folder in (self.files, self.batches, self.uploads):
                folder.mkdir(mode=0o700, exist_ok=True)
            self._db = _connect(self.root / "service.sqlite")
        except (OSError, sqlite3.Error) as error:
            raise BadUsage(f"--store {root}: cannot be used: {error}") from error

    @property
    def files(self) -> Path:
        """The folder of uploaded files."""
        return self.root / "files"

    @property
    def batches(self) -> Path:
        """The folder of batches."""
        return self.root / "batches"

    @property
    def lengths(self) -> Path:
        """The file of what was learned of answers' lengths."""
        return self.root / "lengths.sqlite"

    @property
    def uploads(self) -> Path:
        """The folder of files that are being uploaded."""
        return self.root / "uploads"

    @property
    def id(self) -> str:
        """An id that the store keeps, for what an engine leaves behind."""
        return str(self._db.execute("SELECT value FROM service WHERE key = 'id'").fetchone()[0])

    @property
    def sums(self) -> Sums:
        """Sums over files and batches."""
        return Sums(self._db)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def clear_leftovers(self) -> None:
        """Remove files without a row, which a kill has left. Whoever calls this is alone with the store."""
        shutil.rmtree(self.uploads)
        self.uploads.mkdir(mode=0o700)
        known = {path for (path,) in self._db.execute("SELECT path FROM file WHERE NOT deleted")}
        for path in self.files.iterdir():
            if str(path.relative_to(self.root)) not in known:
                path.unlink()
        marks = ", ".join("?" * len(OPEN))
        kept = {row[0] for row in self._db.execute(f"SELECT id FROM batch WHERE status IN ({marks})", OPEN)}
        kept |= {Path(path).parent.name for path in known}
        for folder in self.batches.iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder)

    # Files.

    def add_upload(
        self, owner: str, uploaded: Path, *, filename: str, purpose: str, expires_after: int | None
    ) -> FileRow:
        """Take a file in that is complete and on the disk; its name is changed."""
        id = f"file-{secrets.token_hex(16)}"
        path = self.files / id
        os.rename(uploaded, path)
        sync_folder(self.files)
        with transaction(self._db):
            self._add_file(owner, id, path, filename, purpose, expires_after)
        return self.file(owner, id)

    def _add_file(
        self, owner: str, id: str, path: Path, filename: str, purpose: str, expires_after: int | None
    ) -> None:
        now = int(time.time())
        expires = None if expires_after is None else now + expires_after
        self._db.execute(
            "INSERT INTO file (id, owner, filename, bytes, purpose, created_at, expires_at, path)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(id, owner, filename, path.stat().st_size, purpose, now, expires),
                str(path.relative_to(self.root)),
            ),
        )

    def file(self, owner: str, id: str) -> FileRow:
        """Read a file.

        Raises:
            NotFound: the owner has none with this id.
        """
        row = self._db.execute(
            f"SELECT {FILE} FROM file WHERE id = ? AND owner = ? AND NOT deleted"
            " AND (expires_at IS NULL OR expires_at > ?)",
            (id, owner, time.time()),
        ).fetchone()
        if row is None:
            raise NotFound(f"there is no file {id!r}")
        return FileRow(*row)

    def list_files(
        self, owner: str, *, purpose: str | None, after: str | None, limit: int, descending: bool
    ) -> list[FileRow]:
        """Read files behind another one, which may be deleted by now.

        Raises:
            NotFound: the owner never had the file `after`.
        """
        rows = self._page(
            f"SELECT {FILE} FROM file WHERE owner = ? AND NOT deleted AND (? IS NULL OR purpose = ?)"
            " AND (expires_at IS NULL OR expires_at > ?)",
            (owner, purpose, purpose, time.time()),
            after=None if after is None else self._place("file", owner, after),
            limit=limit,
            descending=descending,
        )
        return [FileRow(*row) for row in rows]

    def delete_file(self, owner: str, id: str) -> None:
        """Delete a file; a batch that was created of it goes on.

        Raises:
            NotFound: the owner has none with this id.
        """
        self._remove(self.file(owner, id))

    def delete_expired_files(self) -> None:
        """Delete files whose time is over."""
        query = f"SELECT {FILE} FROM file WHERE NOT deleted AND expires_at <= ?"
        for row in self._db.execute(query, (time.time(),)).fetchall():
            self._remove(FileRow(*row))

    def _remove(self, row: FileRow) -> None:
        with transaction(self._db):
            self._db.execute("UPDATE file SET deleted = 1 WHERE id = ?", (row.id,))
        self.path(row).unlink(missing_ok=True)

    def path(self, row: FileRow) -> Path:
        """Tell where a file's content is."""
        return self.root / row.path

    # Batches.

    def folder(self, id: str) -> Path:
        """Tell where the files of a batch's job are; `id` is that of a row."""
        return self.batches / id

    def repeated_batch(self, owner: str, request: CreateBatch) -> BatchRow | None:
        """Find the batch that the same request has begun just before."""
        again = self._db.execute(
            "SELECT id FROM batch WHERE owner = ? AND request = ? AND created_at >= ?"
            " AND status NOT IN ('cancelling', 'cancelled') ORDER BY seq DESC LIMIT 1",
            (owner, _dump(request), int(time.time()) - REPEAT_SECONDS),
        ).fetchone()
        return None if again is None else self.batch(again[0])

    def create_batch(self, owner: str, request: CreateBatch) -> BatchRow:
        """Begin a batch.

        Its input is the file's content under a second name, so that it outlives the file.

        Raises:
            NotFound: the owner has no such input file.
        """
        now = int(time.time())
        file = self.file(owner, request.input_file_id)
        id = f"batch_{secrets.token_hex(16)}"
        folder = self.folder(id)
        folder.mkdir(mode=0o700)
        os.link(self.path(file), folder / "input.jsonl")
        sync_folder(folder)
        sync_folder(self.batches)
        with transaction(self._db):
            self._db.execute(
                "INSERT INTO batch (id, owner, request, status, created_at, expires_at, counts)"
                " VALUES (?, ?, ?, 'validating', ?, ?, ?)",
                (id, owner, _dump(request), now, now + request.window, _dump(Counts())),
            )
        return self.batch(id)

    def batch(self, id: str, owner: str | None = None) -> BatchRow:
        """Read a batch; with an owner, only if it is theirs.

        Raises:
            NotFound: there is none with this id.
        """
        query = f"SELECT {BATCH} FROM batch WHERE id = ? AND (? IS NULL OR owner = ?)"
        row = self._db.execute(query, (id, owner, owner)).fetchone()
        if row is None:
            raise NotFound(f"there is no batch {id!r}")
        return _batch(row)

    def list_batches(self, owner: str, *, after: str | None, limit: int) -> list[BatchRow]:
        """Read batches behind another one, the newest first.

        Raises:
            NotFound: the owner has no batch `after`.
        """
        rows = self._page(
            f"SELECT {BATCH} FROM batch WHERE owner = ?",
            (owner,),
            after=None if after is None else self._place("batch", owner, after),
            limit=limit,
            descending=True,
        )
        return [_batch(row) for row in rows]

    def open_batches(self) -> list[BatchRow]:
        """Read all batches that something is to be done for, the oldest first."""
        marks = ", ".join("?" * len(OPEN))
        query = f"SELECT {BATCH} FROM batch WHERE status IN ({marks}) ORDER BY seq"
        return [_batch(row) for row in self._db.execute(query, OPEN)]

    def move(self, id: str, status: str, *, of: Sequence[str], **values: Any) -> bool:
        """Let a batch go from one of some states to another, now.

        Args:
            of: the states that it may be in.
            values: further columns; what is no text or number is kept as JSON.

        Returns:
            Whether it was in one of them; otherwise nothing is changed.
        """
        with transaction(self._db):
            return self._move(id, status, of, values)

    def _move(self, id: str, status: str, of: Sequence[str], values: dict[str, Any]) -> bool:
        columns = {"status": status, f"{status}_at": int(time.time())}
        columns |= {
            name: value if isinstance(value, str | int | None) else _dump(value)
            for name, value in values.items()
        }
        changed = self._db.execute(
            f"UPDATE batch SET {', '.join(f'{name} = ?' for name in columns)}"
            f" WHERE id = ? AND status IN ({', '.join('?' * len(of))})",
            (*columns.values(), id, *of),
        )
        return changed.rowcount == 1

    def end(
        self,
        batch: BatchRow,
        status: str,
        *,
        of: Sequence[str],
        output: Path | None,
        errors: Path | None,
        counts: Counts,
        usage: dict[str, Any] | None,
    ) -> None:
        """Let a batch go to its last state, with its files; all or nothing.

        Args:
            of: the states that it may be in.
            output, errors: the files; None where there are none.
        """
        ids: dict[str, str | None] = {}
        with transaction(self._db):
            for name, path in (("output", output), ("error", errors)):
                ids[name] = None if path is None else f"file-{secrets.token_hex(16)}"
                if path is not None:
                    filename, kept = f"{batch.id}_{name}.jsonl", batch.request.output_expires
                    self._add_file(batch.owner, str(ids[name]), path, filename, "batch_output", kept)
            values = {"output_file_id": ids["output"], "error_file_id": ids["error"], "counts": counts}
            if not self._move(batch.id, status, of, values | {"usage": usage}):
                raise RuntimeError(f"{batch.id} is in none of the states {', '.join(of)}")

    def set_counts(self, id: str, counts: Counts) -> None:
        """Keep how many lines of a batch are done."""
        with transaction(self._db):
            self._db.execute("UPDATE batch SET counts = ? WHERE id = ?", (_dump(counts), id))

    def _place(self, table: str, owner: str, id: str) -> int:
        query = f"SELECT seq FROM {table} WHERE id = ? AND owner = ?"
        row = self._db.execute(query, (id, owner)).fetchone()
        if row is None:
            raise NotFound(f"after: there is no {table} {id!r}")
        return int(row[0])

    def _page(
        self, query: str, values: tuple[Any, ...], *, after: int | None, limit: int, descending: bool
    ) -> Iterator[tuple[Any, ...]]:
        compare, order = ("<", "DESC") if descending else (">", "ASC")
        query += f" AND (? IS NULL OR seq {compare} ?) ORDER BY seq {order} LIMIT ?"
        return iter(self._db.execute(query, (*values, after, after, limit)).fetchall())


def _dump(value: Any) -> str:
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    return json.dumps(plain, sort_keys=True)


def _batch(row: tuple[Any, ...]) -> BatchRow:
    seq, id, owner, request, status, *rest = row
    times, (model, output, error, counts, usage, errors) = rest[: len(TIMES)], rest[len(TIMES) :]
    return BatchRow(
        *(seq, id, owner, CreateBatch(**json.loads(request)), status),
        *(dict(zip(TIMES, times, strict=True)), model, output, error, Counts(**json.loads(counts))),
        None if usage is None else json.loads(usage),
        None if errors is None else json.loads(errors),
    )


def _connect(path: Path) -> sqlite3.Connection:
    """Open the database, made if it is not there."""
    os.close(os.open(path, os.O_CREAT | os.O_NOFOLLOW | os.O_RDWR, 0o600))
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    with _closed_on_error(db):
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        if version == 0 and not db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            with transaction(db):
                for statement in SCHEMA.split(";"):
                    db.execute(statement)
                db.execute("INSERT INTO service VALUES ('id', ?)", (f"serve_{secrets.token_hex(16)}",))
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {VERSION}")
        elif application != APPLICATION_ID or version != VERSION:
            raise BadUsage(f"{path}: is no store of this version of sglang-batch; choose another --store")
    return db


@contextmanager
def _closed_on_error(db: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        db.close()
        raise

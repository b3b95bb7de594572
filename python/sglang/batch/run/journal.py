"""The journal of a job: an SQLite file beside the output with a row per line. Each method is one transaction.

It holds neither prompts nor answers: prompts are in the input, answers in the record logs. docs/batch.md
describes the tables; `check` holds the invariants.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from sglang.batch.records import Usage
from sglang.batch.run.line_state import LineEvent, LineProgress, LineState, next_state
from sglang.batch.run.record_log import Span
from sglang.batch.run.schema import connect, transaction
from sglang.batch.run.tally import Tally

OPEN_LINE = """SELECT position, input, number, offset, length, hash, custom_id IS NOT NULL AND EXISTS (
    SELECT 1 FROM line AS first WHERE first.custom_id = line.custom_id AND first.position < line.position)
    FROM line"""

FORGET = """state = 0, attempts = 0, crashes = 0, log = NULL, record_offset = NULL, record_length = NULL,
    code = NULL, prompt_tokens = NULL, cached_tokens = NULL, completion_tokens = NULL, same_as = NULL,
    reasoning_tokens = NULL"""

EARLIER_TWIN = (
    "EXISTS (SELECT 1 FROM line AS twin WHERE twin.key = line.key AND twin.position < line.position)"
)
"""Whether a line is a follower: it waits for the record of the first line with its key."""


class Log(IntEnum):
    """The record logs by their number in the journal."""

    ANSWERS = 0
    ERRORS = 1


@dataclass(frozen=True, slots=True)
class LineRow:
    """Where a line of the input is, and what is in it.

    Attributes:
        position: index among all lines that are not blank, over all inputs.
        input: index of its input.
        number: of the line in its input, from 1.
        offset, length: bytes, in the input or in its spool.
        hash, custom_id: 16 bytes each; custom_id is None where the line has none.
        key: of lines that get the same answer, see `twins.answer_key`.
    """

    position: int
    input: int
    number: int
    offset: int
    length: int
    hash: bytes
    custom_id: bytes | None
    key: bytes | None = None


@dataclass(frozen=True, slots=True)
class OpenLine:
    """A line that is to be run.

    Attributes:
        duplicate: 1 if an earlier line has its custom_id, else 0.
    """

    position: int
    input: int
    number: int
    offset: int
    length: int
    hash: bytes
    duplicate: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """A line whose record is in a log.

    Attributes:
        code: of its error; None if it was answered.
        usage: what the engine computed for it.
        same_as: position of the line whose answer it has got; None where it has its own.
    """

    position: int
    log: Log
    span: Span
    code: str | None
    usage: Usage
    same_as: int | None = None


class TwinLines:
    """Lines of a journal that get the record of another: of the first line with their key."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def count(self) -> int:
        """Count the lines that get the record of an equal one, now or later."""
        query = "SELECT COUNT(key) - COUNT(DISTINCT key) FROM line"
        return int(self._db.execute(query).fetchone()[0])

    def leaders(self, positions: Sequence[int]) -> list[int]:
        """Choose, among lines, those whose record others wait for."""
        rows = self._db.execute(
            "SELECT line.position FROM json_each(?) AS given JOIN line ON line.position = given.value"
            f" WHERE line.key IS NOT NULL AND NOT {EARLIER_TWIN} AND EXISTS ("
            "  SELECT 1 FROM line AS twin INDEXED BY key"
            "  WHERE twin.key = line.key AND twin.position > line.position AND twin.state = 0)",
            (json.dumps(positions),),
        )
        return [row[0] for row in rows]

    def followers(self, leader: int, *, after: int, limit: int) -> list[OpenLine]:
        """Read lines that wait for the record of another, from the first behind position `after` on."""
        rows = self._db.execute(
            "SELECT position, input, number, offset, length, hash, 0 FROM line INDEXED BY key"
            " WHERE key = (SELECT key FROM line WHERE position = ?) AND position > ? AND state = 0"
            " ORDER BY position LIMIT ?",
            (leader, max(leader, after), limit),
        )
        return [OpenLine(*row) for row in rows]

    def late(self, *, after: int, limit: int) -> list[tuple[OpenLine, Recorded]]:
        """Read lines that are to be run although the line whose record they wait for is done, and that
        record, from the first behind position `after` on."""
        rows = self._db.execute(
            "SELECT line.position, line.input, line.number, line.offset, line.length, line.hash, 0,"
            " leader.position, leader.log, leader.record_offset, leader.record_length, leader.code,"
            " leader.prompt_tokens, leader.cached_tokens, leader.completion_tokens, leader.reasoning_tokens"
            " FROM line CROSS JOIN line AS leader ON leader.position = ("
            "  SELECT MIN(twin.position) FROM line AS twin WHERE twin.key = line.key)"
            " WHERE line.state = 0 AND line.key IS NOT NULL AND line.position > ? AND leader.log IS NOT NULL"
            " ORDER BY line.position LIMIT ?",
            (after, limit),
        )
        return [
            (
                OpenLine(*row[:7]),
                Recorded(row[7], Log(row[8]), Span(row[9], row[10]), row[11], Usage(*row[12:])),
            )
            for row in rows
        ]


class Journal:
    """One connection to a journal, for one thread at a time.

    Args:
        path: the file.
        create: make a new one, mode 0600, where there must be none.
        read_only: change nothing, also beside a run that writes.

    Attributes:
        twins: who gets whose record.

    Raises:
        JournalUnusable: the file is no journal that this version can use.
    """

    def __init__(self, path: Path, *, create: bool = False, read_only: bool = False) -> None:
        self.path = path
        self._db = connect(path, create=create, read_only=read_only)
        self.twins = TwinLines(self._db)

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._db)

    def close(self) -> None:
        """Close the connection; the last one to close folds the write-ahead log into the file."""
        self._db.close()

    # The job as a whole.

    def get(self, key: str, default: Any = None) -> Any:
        """Read one value of the job."""
        row = self._db.execute("SELECT value FROM job WHERE key = ?", (key,)).fetchone()
        return default if row is None else json.loads(row[0])

    def set(self, **values: Any) -> None:
        """Write values of the job, all or none."""
        with self._transaction():
            self._set(values)

    def _set(self, values: dict[str, Any]) -> None:
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        self._db.executemany("INSERT OR REPLACE INTO job VALUES (?, ?)", rows)

    def length(self, log: Log) -> int:
        """Tell a log's committed length in bytes."""
        return int(self.get(_length_key(log), 0))

    def event(self, kind: str, detail: str = "") -> None:
        """Note something that happened to the run."""
        with self._transaction():
            self._db.execute("INSERT INTO event VALUES (?, ?, ?)", (time.time(), kind, detail))

    def events(self, last: int) -> list[tuple[float, str, str]]:
        """Read the last events, the latest last; seconds since 1970, kind, detail."""
        query = "SELECT seconds, kind, detail FROM event ORDER BY rowid DESC LIMIT ?"
        return self._db.execute(query, (last,)).fetchall()[::-1]

    # Lines of the input.

    def lines(self) -> Iterator[LineRow]:
        """Read where all lines are, in their order."""
        query = (
            "SELECT position, input, number, offset, length, hash, custom_id, key FROM line ORDER BY position"
        )
        return (LineRow(*row) for row in self._db.execute(query))

    def put_lines(self, rows: Iterable[LineRow]) -> None:
        """Add lines, or say where lines that are known are now.

        A line whose custom_id an earlier one has is never run, so it keeps no key.
        """
        with self._transaction():
            self._db.executemany(
                "INSERT INTO line (position, input, number, offset, length, hash, custom_id, key)"
                " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, CASE WHEN EXISTS ("
                "  SELECT 1 FROM line WHERE custom_id = ?7 AND position < ?1) THEN NULL ELSE ?8 END)"
                " ON CONFLICT (position) DO UPDATE SET input = excluded.input, number = excluded.number,"
                " offset = excluded.offset, length = excluded.length, key = excluded.key",
                [
                    (
                        *(row.position, row.input, row.number, row.offset, row.length),
                        *(row.hash, row.custom_id, row.key),
                    )
                    for row in rows
                ],
            )

    def pending(self, *, after: int, limit: int, followers: bool = True) -> list[OpenLine]:
        """Read lines that are to be run, in their order, from the first behind position `after` on.

        Args:
            followers: also those that could wait for the record of an earlier line.
        """
        leaders = "" if followers else f" AND (key IS NULL OR NOT {EARLIER_TWIN})"
        query = f"{OPEN_LINE} WHERE state = 0 AND position > ?{leaders} ORDER BY position LIMIT ?"
        rows = self._db.execute(query, (after, limit))
        return [OpenLine(*row) for row in rows]

    def quarantined(self) -> list[int]:
        """List the positions of lines that are set aside, in their order."""
        query = f"SELECT position FROM line WHERE state = {LineState.QUARANTINED:d} ORDER BY position"
        return [position for (position,) in self._db.execute(query)]

    def open_line(self, position: int) -> OpenLine | None:
        """Read a line that is to be run, set aside or not; None if it has its record."""
        row = self._db.execute(f"{OPEN_LINE} WHERE state IN (0, 4) AND position = ?", (position,)).fetchone()
        return None if row is None else OpenLine(*row)

    def has_history(self) -> bool:
        """Tell whether a line was ever answered, refused, or suspected."""
        query = "SELECT EXISTS (SELECT 1 FROM line WHERE state != 0 OR crashes > 0)"
        return bool(self._db.execute(query).fetchone()[0])

    def open_lines(self) -> int:
        """Count the lines without a record."""
        query = (
            "SELECT (SELECT COUNT(*) FROM line WHERE state = 0) + (SELECT COUNT(*) FROM line WHERE state = 4)"
        )
        return int(self._db.execute(query).fetchone()[0])

    # Records.

    def record(self, records: Sequence[Recorded]) -> None:
        """Say where the records of lines are; only then do these exist.

        Raises:
            RuntimeError: a line has its record already, or does not exist.
        """
        lengths = {log: self.length(log) for log in Log}
        with self._transaction():
            changed = self._db.executemany(
                "UPDATE line SET state = ?, log = ?, record_offset = ?, record_length = ?, code = ?,"
                " prompt_tokens = ?, cached_tokens = ?, completion_tokens = ?, reasoning_tokens = ?,"
                " same_as = ?, attempts = attempts + 1"
                " WHERE position = ? AND state IN (0, 4)",
                [_record_row(record) for record in records],
            ).rowcount
            if changed != len(records):
                raise RuntimeError(f"{len(records) - changed} of {len(records)} lines have a record already")
            for record in records:
                lengths[record.log] = max(lengths[record.log], record.span.end)
            self._set({_length_key(log): length for log, length in lengths.items()})

    def tally(self) -> Tally:
        """Count what is done."""
        tally = Tally()
        for state, code, count, prompt, cached, completion, reasoning in self._db.execute(
            "SELECT state, code, COUNT(*), TOTAL(prompt_tokens), TOTAL(cached_tokens),"
            " TOTAL(completion_tokens), TOTAL(reasoning_tokens) FROM line GROUP BY state, code"
        ):
            tally.lines += count
            if state == LineState.ANSWERED:
                tally.answered += count
            elif state == LineState.FAILED:
                tally.failed += count
                tally.codes[code] += count
            tally.prompt_tokens += int(prompt)
            tally.cached_tokens += int(cached)
            tally.completion_tokens += int(completion)
            tally.reasoning_tokens += int(reasoning)
        tally.twins, tokens = self._db.execute(
            "SELECT COUNT(*), TOTAL(leader.prompt_tokens) + TOTAL(leader.completion_tokens) FROM line"
            " JOIN line AS leader ON leader.position = line.same_as WHERE line.same_as IS NOT NULL"
        ).fetchone()
        tally.twin_tokens = int(tokens)
        tally.earlier, tally.earlier_tokens = tally.done, tally.tokens
        return tally

    def completion_tokens(self) -> dict[int, int]:
        """Read the output tokens of each answered line, by its position."""
        query = f"SELECT position, completion_tokens FROM line WHERE state = {LineState.ANSWERED:d}"
        return dict(self._db.execute(query))

    def answered(self, limit: int) -> list[tuple[OpenLine, int]]:
        """Read lines that were run and answered, evenly spread over them all, with their output tokens."""
        chosen = "FROM line WHERE state = 2 AND same_as IS NULL AND completion_tokens > 0"
        (count,) = self._db.execute(f"SELECT COUNT(*) {chosen}").fetchone()
        rows = self._db.execute(
            "SELECT position, input, number, offset, length, hash, 0, completion_tokens"
            f" FROM (SELECT *, ROW_NUMBER() OVER (ORDER BY position) AS place {chosen}) WHERE place % ? = 0",
            (count // limit + 1,),
        )
        return [(OpenLine(*row[:7]), row[7]) for row in rows]

    def retry_failed(self, codes: Sequence[str] | None = None) -> int:
        """Let failed lines run again, those with the given error codes or all; returns how many."""
        chosen = "" if codes is None else f" AND code IN ({', '.join('?' * len(codes))})"
        with self._transaction():
            query = f"UPDATE line SET {FORGET} WHERE state = {LineState.FAILED:d}{chosen}"
            return self._db.execute(query, tuple(codes or ())).rowcount

    def forget_beyond(self, log: Log, size: int) -> tuple[int, int]:
        """Let the lines run again whose records end behind `size` bytes of a log.

        Returns:
            How many lines that are, and the end of the last record left, which is the log's length now.
        """
        with self._transaction():
            query = f"UPDATE line SET {FORGET} WHERE log = ? AND record_offset + record_length > ?"
            lost = self._db.execute(query, (log, size)).rowcount
            query = "SELECT MAX(record_offset + record_length) FROM line WHERE log = ?"
            end = self._db.execute(query, (log,)).fetchone()[0] or 0
            self._set({_length_key(log): end})
            return lost, end

    def engine_died(self, suspects: Sequence[int]) -> list[int]:
        """Note that the engine died while lines ran that may be why.

        Args:
            suspects: their positions.

        Returns:
            The positions of those that are to be run alone from now on.
        """
        quarantined = []
        with self._transaction():
            for position in suspects:
                query = "SELECT attempts, crashes FROM line WHERE position = ? AND state = 0"
                row = self._db.execute(query, (position,)).fetchone()
                if row is None:
                    continue
                line = next_state(LineProgress(LineState.PENDING, *row), LineEvent.SUBMIT)
                line = next_state(line, LineEvent.CRASH)
                query = "UPDATE line SET state = ?, attempts = ?, crashes = ? WHERE position = ?"
                self._db.execute(query, (line.state, line.attempts, line.crashes, position))
                if line.state is LineState.QUARANTINED:
                    quarantined.append(position)
        return quarantined

    # The end.

    def spans(self, log: Log, *, by_position: bool) -> Iterator[tuple[int, Span]]:
        """Read where the records of a log are, as (position, span), in the order of lines or of the log."""
        order = "position" if by_position else "record_offset"
        query = f"SELECT position, record_offset, record_length FROM line WHERE log = ? ORDER BY {order}"
        return ((row[0], Span(row[1], row[2])) for row in self._db.execute(query, (log,)))

    def record_bytes(self, log: Log) -> int:
        """Add up the records of a log: less than its length if some are dead."""
        query = "SELECT TOTAL(record_length) FROM line WHERE log = ?"
        return int(self._db.execute(query, (log,)).fetchone()[0])

    def move_records(self, logs: dict[Log, bool], **values: Any) -> None:
        """Say that logs have been written anew, and set values of the job with it.

        Args:
            logs: those that were written anew, and whether in the order of lines (else of the log).
        """
        with self._transaction():
            for log, by_position in logs.items():
                order = "position" if by_position else "record_offset"
                self._db.execute(
                    "UPDATE line SET record_offset = moved.offset FROM ("
                    "  SELECT position, SUM(record_length) OVER ("
                    f"    ORDER BY {order} ROWS UNBOUNDED PRECEDING) - record_length AS offset"
                    "  FROM line WHERE log = ?) AS moved WHERE line.position = moved.position",
                    (log,),
                )
                self._set({_length_key(log): self.record_bytes(log)})
            self._set(values)

    def check(self) -> list[str]:
        """Check what must always hold; returns what does not.

        * A line has a record exactly if it is answered or failed, and a code exactly if it failed.
        * A line that got the record of another stands behind it, and has a record.
        * Records of a log do not overlap, and end within its committed length.
        """
        problems = []
        for what, condition in (
            ("a state and no record, or a record and no state", "(state IN (2, 3)) != (log IS NOT NULL)"),
            ("a code and no failure, or a failure and no code", "(state = 3) != (code IS NOT NULL)"),
            ("a state that is never written", "state NOT IN (0, 2, 3, 4)"),
            ("another's record and none of their own", "same_as IS NOT NULL AND log IS NULL"),
            ("the record of a line behind them", "same_as >= position"),
        ):
            (count,) = self._db.execute(f"SELECT COUNT(*) FROM line WHERE {condition}").fetchone()
            if count:
                problems.append(f"{count} lines have {what}")
        for log in Log:
            end = 0
            for position, span in self.spans(log, by_position=False):
                if span.offset < end:
                    problems.append(f"the record of line {position} overlaps another")
                end = span.end
            if end > self.length(log):
                problems.append(f"records of {log.name.lower()} end at {end}, behind {self.length(log)}")
        return problems


def _length_key(log: Log) -> str:
    return f"{log.name.lower()}_length"


def _record_row(record: Recorded) -> tuple[Any, ...]:
    state = LineState.ANSWERED if record.code is None else LineState.FAILED
    usage = record.usage
    return (
        *(state, record.log, record.span.offset, record.span.length, record.code),
        *(usage.prompt, usage.cached, usage.completion, usage.reasoning, record.same_as, record.position),
    )

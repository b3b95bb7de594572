"""The journal keeps one record per line, and says no where it cannot."""

import sqlite3
import stat
from pathlib import Path

import pytest
from journals import journal, recorded, row

from sglang.batch.run.journal import Journal, LineRow, Log
from sglang.batch.run.schema import APPLICATION_ID, MIGRATIONS, VERSION, JournalUnfinished, JournalUnusable


def positions(made: Journal) -> list[int]:
    return [line.position for line in made.pending(after=-1, limit=100)]


def test_a_line_gets_its_record_once(tmp_path: Path) -> None:
    made = journal(tmp_path, lines=3)
    made.record([recorded(1, 0)])
    with pytest.raises(RuntimeError, match="1 of 2"):
        made.record([recorded(0, 10), recorded(1, 20)])
    assert positions(made) == [0, 2], "a refused group must leave nothing"
    assert made.length(Log.ANSWERS) == 10
    assert made.check() == []


def test_what_was_recorded_is_counted_after_opening_again(tmp_path: Path) -> None:
    made = journal(tmp_path, lines=4)
    made.record([recorded(0, 0), recorded(2, 0, code="bad"), recorded(3, 10)])
    made.close()
    tally = Journal(tmp_path / "journal").tally()
    assert (tally.lines, tally.answered, tally.failed, tally.earlier) == (4, 2, 1, 3)
    assert (tally.prompt_tokens, tally.cached_tokens) == (15, 6)
    assert (tally.completion_tokens, tally.reasoning_tokens) == (9, 3)
    assert tally.codes == {"bad": 1}


def test_a_custom_id_belongs_to_the_first_line_that_has_it(tmp_path: Path) -> None:
    made = Journal(tmp_path / "journal", create=True)
    made.put_lines([row(0, "a"), row(1, "b"), row(2, "a"), row(3, None), row(4, None)])
    made.record([recorded(0, 0)])
    assert {line.position: line.duplicate for line in made.pending(after=-1, limit=9)} == {
        **{1: False, 2: True, 3: False, 4: False}
    }


def test_failed_lines_run_again_by_code(tmp_path: Path) -> None:
    made = journal(tmp_path, lines=4)
    made.record([recorded(0, 0), recorded(1, 0, code="a"), recorded(2, 10, code="b")])
    assert made.retry_failed(["b", "c"]) == 1
    assert positions(made) == [2, 3]
    assert made.retry_failed() == 1
    assert positions(made) == [1, 2, 3]
    assert made.check() == []


def test_records_that_a_log_lost_are_forgotten(tmp_path: Path) -> None:
    made = journal(tmp_path, lines=4)
    made.record([recorded(2, 0), recorded(0, 10), recorded(1, 20), recorded(3, 0, code="a")])
    assert made.forget_beyond(Log.ANSWERS, 25) == (1, 20)
    assert positions(made) == [1]
    assert made.length(Log.ANSWERS) == 20


def test_a_line_is_quarantined_after_its_second_crash(tmp_path: Path) -> None:
    made = journal(tmp_path, lines=3)
    made.record([recorded(2, 0)])
    assert made.engine_died([0, 1, 2]) == []
    assert made.engine_died([1]) == [1]
    assert positions(made) == [0]
    assert made.open_lines() == 2
    made.record([recorded(1, 0, code="engine_crashed")])
    assert made.check() == []


@pytest.mark.parametrize("by_position", [True, False])
def test_moved_records_are_one_behind_the_other(by_position: bool, tmp_path: Path) -> None:
    made = journal(tmp_path, lines=4)
    made.record([recorded(2, 0), recorded(0, 20), recorded(3, 40)])
    made.move_records({Log.ANSWERS: by_position}, state="renaming")
    order = [0, 2, 3] if by_position else [2, 0, 3]
    assert [position for position, _ in made.spans(Log.ANSWERS, by_position=False)] == order
    assert [span.offset for _, span in made.spans(Log.ANSWERS, by_position=False)] == [0, 10, 20]
    assert (made.length(Log.ANSWERS), made.get("state")) == (30, "renaming")


def test_lines_that_moved_keep_their_state(tmp_path: Path) -> None:
    made = journal(tmp_path, lines=2)
    made.record([recorded(0, 0)])
    moved = [row(position + 5) for position in range(2)]
    made.put_lines(
        type(line)(i, 1, line.number, line.offset, line.length, line.hash, line.custom_id)
        for i, line in enumerate(moved)
    )
    assert positions(made) == [1]
    (line,) = made.pending(after=-1, limit=1)
    assert (line.input, line.number, line.offset) == (1, 7, 60)


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    made = journal(tmp_path, lines=1)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes.pop("journal") == 0o600
    assert set(modes.values()) == {0o600}, "SQLite's own files take the mode of the journal"
    made.close()


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("precious " * 100)
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE t (x)")
    other.close()
    for name in ("text", "other"):
        with pytest.raises(JournalUnusable, match=name):
            Journal(tmp_path / name)
    assert (tmp_path / "text").read_text() == "precious " * 100


MAKING = ("journal_mode = WAL", f"application_id = {APPLICATION_ID}")


@pytest.mark.parametrize("made", [MAKING[:0], MAKING[:1], MAKING])
def test_a_journal_whose_making_was_interrupted_is_told_from_others(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    db = sqlite3.connect(tmp_path / "journal")
    for pragma in made:
        db.execute(f"PRAGMA {pragma}")
    db.close()
    with pytest.raises(JournalUnfinished):
        Journal(tmp_path / "journal")


def test_a_journal_of_a_later_version_is_refused(tmp_path: Path) -> None:
    journal(tmp_path, lines=1).close()
    db = sqlite3.connect(tmp_path / "journal")
    db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()
    with pytest.raises(JournalUnusable, match=f"version {VERSION + 1}"):
        Journal(tmp_path / "journal")


VERSION_1 = """
CREATE TABLE job (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE line (
  position INTEGER PRIMARY KEY, input INTEGER NOT NULL, number INTEGER NOT NULL,
  offset INTEGER NOT NULL, length INTEGER NOT NULL, hash BLOB NOT NULL, custom_id BLOB,
  state INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, crashes INTEGER NOT NULL DEFAULT 0,
  log INTEGER, record_offset INTEGER, record_length INTEGER, code TEXT,
  prompt_tokens INTEGER, cached_tokens INTEGER, completion_tokens INTEGER
) STRICT;
CREATE INDEX pending ON line (position) WHERE state = 0;
CREATE INDEX quarantined ON line (position) WHERE state = 4;
CREATE INDEX custom_id ON line (custom_id, position) WHERE custom_id IS NOT NULL;
CREATE TABLE event (seconds REAL NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL) STRICT;
INSERT INTO line VALUES (0, 0, 1, 0, 10, x'01', x'02', 2, 1, 0, 0, 0, 10, NULL, 5, 2, 3);
INSERT INTO line VALUES (1, 0, 2, 10, 10, x'03', x'04', 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO job VALUES ('answers_length', '10');
PRAGMA user_version = 1;
"""


def version_1(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.executescript(VERSION_1)
    db.close()


def test_a_journal_of_an_earlier_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    version_1(path)
    with pytest.raises(JournalUnusable, match="older"):
        Journal(path, read_only=True)
    made = Journal(path)
    assert (positions(made), made.tally().done, made.length(Log.ANSWERS), made.check()) == ([1], 1, 10, [])
    made.put_lines([LineRow(i, 0, i + 1, i * 10, 10, b"%d" % i, b"%d" % i, b"key") for i in range(3)])
    assert [of.position for of in made.pending(after=-1, limit=9, followers=False)] == []
    assert [of.position for of, _ in made.twins.late(after=-1, limit=9)] == [1, 2]
    made.close()
    new = Journal(tmp_path / "new", create=True)
    tables = "SELECT name, type FROM sqlite_schema ORDER BY name"
    columns = "SELECT name, type FROM pragma_table_info('line') ORDER BY name"
    old = Journal(path)
    for query in (tables, columns, "PRAGMA user_version"):
        assert old._db.execute(query).fetchall() == new._db.execute(query).fetchall()


def test_a_migration_that_is_interrupted_leaves_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    version_1(path)
    with monkeypatch.context() as broken:
        broken.setitem(MIGRATIONS, 1, f"{MIGRATIONS[1]}; SELECT nothing")
        with pytest.raises(sqlite3.OperationalError):
            Journal(path)
    assert positions(Journal(path)) == [1]


def test_a_journal_says_whose_file_it_is(tmp_path: Path) -> None:
    journal(tmp_path, lines=1).close()
    header = (tmp_path / "journal").read_bytes()[:100]
    assert int.from_bytes(header[68:72], "big") == APPLICATION_ID


def test_a_tail_of_the_write_ahead_log_that_is_torn_at_any_byte_is_an_earlier_commit(tmp_path: Path) -> None:
    made = journal(tmp_path, lines=3)
    made.record([recorded(0, 0)])
    wal = tmp_path / "journal-wal"
    before = wal.stat().st_size
    made.record([recorded(1, 10)])
    whole, main = wal.read_bytes(), (tmp_path / "journal").read_bytes()
    made.close()
    step = max((len(whole) - before) // 40, 1)
    ends = {before, len(whole) - 1, *range(before, len(whole), step), *range(len(whole) - 30, len(whole))}
    for end in sorted(ends):
        torn = tmp_path / f"torn-{end}"
        torn.mkdir()
        (torn / "journal").write_bytes(main)
        (torn / "journal-wal").write_bytes(whole[:end])
        found = Journal(torn / "journal")
        assert (positions(found), found.length(Log.ANSWERS), found.check()) == ([1, 2], 10, [])
        found.close()

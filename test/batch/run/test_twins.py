"""Lines that ask for the same answer get one, each in a record of its own, whatever ends a run when."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from stand_ins import line
from test_committer import CALLS, FaultyDisk

from sglang.batch.input.source import find_sources
from sglang.batch.records import Answer as Reply
from sglang.batch.records import BatchFailure, BatchRequest, Usage, answer_record, failure_record, parse_line
from sglang.batch.run import twins as twins_module
from sglang.batch.run.committer import Finished, write_group
from sglang.batch.run.files import JobFiles
from sglang.batch.run.journal import Journal, Log, OpenLine
from sglang.batch.run.record_log import RecordLog
from sglang.batch.run.scan import InputLines, scan
from sglang.batch.run.twins import Twins
from sglang.batch.usage import BadUsage

USAGE = Usage(prompt=5, cached=2, completion=3)


def greedy(custom_id: str, question: int) -> bytes:
    return line(custom_id, body={"prompt": f"question {question}", "temperature": 0})


class Scene:
    """A job in a folder: its lines, their journal and logs; what would run in an engine is made up."""

    def __init__(self, folder: Path, lines: list[bytes], **disk: Any) -> None:
        self.folder = folder
        self.input = folder / "in.jsonl"
        self.input.write_bytes(b"".join(lines))
        self.files = JobFiles.of(folder / "out.jsonl", None)
        self.files.make_work()
        self.journal = Journal(self.files.journal, create=True)
        self.logs = {log: RecordLog(folder / log.name, length=0, **disk) for log in (Log.ANSWERS, Log.ERRORS)}
        self.inputs = self.scan()

    def scan(self) -> InputLines:
        return scan(self.journal, find_sources([str(self.input)]), self.files)

    def append(self, lines: list[bytes]) -> None:
        with self.input.open("ab") as file:
            file.write(b"".join(lines))
        self.inputs.close()
        self.inputs = self.scan()

    def runnable(self, *, dedupe: bool = True) -> list[OpenLine]:
        return self.journal.pending(after=-1, limit=1000, followers=not dedupe)

    def finish(self, of: OpenLine, *, code: str | None = None) -> Finished:
        """What the engine makes of a line: an answer that names its prompt."""
        request = parse_line(of.number, self.inputs.read(of))
        assert isinstance(request, BatchRequest)
        if code is not None:
            failure = BatchFailure(of.number, request.custom_id, code, str(request.body["prompt"]))
            return Finished(of.position, failure_record(failure), code, Usage())
        reply = Reply(200, json.dumps({"echo": request.body["prompt"]}).encode())
        return Finished(of.position, answer_record(request, reply), None, USAGE)

    def pages(self, *group: Finished) -> Iterator[list[Finished]]:
        return Twins(self.journal, self.inputs).pages(group)

    def commit(self, *group: Finished) -> None:
        for page in self.pages(*group):
            write_group(self.journal, self.logs, page)

    def records(self) -> dict[int, dict[str, Any]]:
        """The records by position."""
        return {
            position: json.loads(file.read(span))
            for log, file in self.logs.items()
            for position, span in self.journal.spans(log, by_position=True)
        }

    def assert_sound(self) -> None:
        """Every record is its line's own, and answers its question."""
        assert self.journal.check() == []
        lines = [json.loads(raw) for raw in self.input.read_bytes().splitlines()]
        records = self.records()
        assert len({record["id"] for record in records.values()}) == len(records)
        for position, record in records.items():
            assert record["custom_id"] == lines[position]["custom_id"]
            if record["error"] is None:
                assert record["response"]["body"] == {"echo": lines[position]["body"]["prompt"]}
            else:
                assert record["error"]["message"] == lines[position]["body"]["prompt"]
                assert record["error"]["line"] == position + 1


@pytest.mark.parametrize("code", [None, "internal_error"])
def test_twins_get_the_first_ones_record_under_their_own_ids(code: str | None, tmp_path: Path) -> None:
    scene = Scene(tmp_path, [greedy("a", 1), greedy("b", 2), greedy("c", 1), line("d"), greedy("e", 1)])
    assert [of.position for of in scene.runnable()] == [0, 1, 3]
    scene.commit(scene.finish(scene.runnable()[0], code=code))
    assert sorted(scene.records()) == [0, 2, 4]
    assert [of.position for of in scene.runnable()] == [1, 3]
    scene.assert_sound()
    tally = scene.journal.tally()
    assert (tally.done, tally.twins, tally.codes.total()) == (3, 2, 3 if code else 0)
    assert (tally.tokens, tally.twin_tokens) == ((0, 0) if code else (8, 16))


def test_without_dedupe_every_line_is_run(tmp_path: Path) -> None:
    scene = Scene(tmp_path, [greedy("a", 1), greedy("b", 1)])
    assert [of.position for of in scene.runnable(dedupe=False)] == [0, 1]


def test_a_line_whose_custom_id_is_taken_is_nobodys_twin(tmp_path: Path) -> None:
    scene = Scene(tmp_path, [line("a"), greedy("a", 1), greedy("b", 1), greedy("b", 1), greedy("c", 1)])
    assert [(of.position, of.duplicate) for of in scene.runnable()] == [(0, 0), (1, 1), (2, 0), (3, 1)]
    scene.append([])
    assert [of.position for of in scene.runnable()] == [0, 1, 2, 3], "nor after another look at the input"


def test_lines_added_later_get_the_record_that_is_there(tmp_path: Path) -> None:
    scene = Scene(tmp_path, [greedy("a", 1), greedy("b", 2)])
    first, second = scene.runnable()
    scene.commit(scene.finish(first), scene.finish(second, code="bad"))
    scene.append([greedy("c", 1), greedy("d", 3), greedy("e", 2)])
    assert [of.position for of in scene.runnable()] == [3]
    assert Twins(scene.journal, scene.inputs).write_late(scene.logs) == 2
    assert sorted(scene.records()) == [0, 1, 2, 4]
    scene.assert_sound()


def test_a_failed_line_and_its_twins_are_retried_as_one(tmp_path: Path) -> None:
    scene = Scene(tmp_path, [greedy(f"r{i}", 1) for i in range(4)])
    scene.commit(scene.finish(scene.runnable()[0], code="aborted"))
    assert scene.journal.retry_failed(["aborted"]) == 4
    assert [of.position for of in scene.runnable()] == [0]
    scene.commit(scene.finish(scene.runnable()[0]))
    assert scene.journal.tally().answered == 4
    scene.assert_sound()


def test_a_twin_whose_line_has_changed_is_not_answered(tmp_path: Path) -> None:
    scene = Scene(tmp_path, [greedy("a", 1), greedy("b", 1)])
    done = scene.finish(scene.runnable()[0])
    scene.input.write_bytes(scene.input.read_bytes().replace(b'"b"', b'"B"'))
    with pytest.raises(BadUsage, match="line 2 has changed"):
        scene.commit(done)


def test_many_twins_are_written_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins_module, "PAGE", 4)
    scene = Scene(tmp_path, [greedy(f"r{i}", i % 2) for i in range(20)])
    done = [scene.finish(of) for of in scene.runnable()]
    sizes = [len(page) for page in scene.pages(*done)]
    assert sizes == [4, 4, 4, 4, 4]


@pytest.mark.parametrize("at", range(1, CALLS // 2))
@pytest.mark.parametrize("code", [None, "bad"])
def test_a_disk_that_fails_at_any_call_leaves_whole_pages(
    at: int, code: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twins_module, "PAGE", 2)
    disk = FaultyDisk(at, errno.EIO, times=1)
    scene = Scene(tmp_path, [greedy(f"r{i}", 1) for i in range(6)], disk=disk)
    try:
        scene.commit(scene.finish(scene.runnable()[0], code=code))
    except OSError:
        assert len(scene.records()) in (0, 2, 4)
    scene.assert_sound()
    assert all(file.size() == file.length for file in scene.logs.values())
    if not scene.records():
        assert [of.position for of in scene.runnable()] == [0]
        return
    assert scene.runnable() == [], "twins of a line that is done are not run"
    Twins(scene.journal, scene.inputs).write_late(scene.logs)
    assert len(scene.records()) == 6
    scene.assert_sound()


class AnyHistory(RuleBasedStateMachine):
    """A job that is killed, continued, retried, added to, and loses the ends of its logs."""

    folders: Iterator[Path]

    @initialize(questions=st.lists(st.integers(0, 3), min_size=1, max_size=8))
    def begin(self, questions: list[int]) -> None:
        self.named = 0
        self.scene = Scene(next(self.folders), self._lines(questions))

    def _lines(self, questions: list[int]) -> list[bytes]:
        start, self.named = self.named, self.named + len(questions)
        return [
            greedy(f"r{start + i}", question) if question else line(f"r{start + i}")
            for i, question in enumerate(questions)
        ]

    def _open(self) -> None:
        Twins(self.scene.journal, self.scene.inputs).write_late(self.scene.logs)

    @rule(data=st.data(), code=st.sampled_from([None, "a", "b"]), dedupe=st.booleans())
    def run(self, data: st.DataObject, code: str | None, dedupe: bool) -> None:
        """A run gets some lines done and is killed between two pages."""
        if dedupe:
            self._open()
        runnable = self.scene.runnable(dedupe=dedupe)
        chosen = data.draw(st.lists(st.sampled_from(runnable), unique=True) if runnable else st.just([]))
        group = [self.scene.finish(of, code=code) for of in chosen]
        if not dedupe:
            write_group(self.scene.journal, self.scene.logs, group)
            return
        for page in self.scene.pages(*group):
            write_group(self.scene.journal, self.scene.logs, page)
            if data.draw(st.booleans()):
                return

    @rule(codes=st.sampled_from([None, ["a"], ["b"]]))
    def retry(self, codes: list[str] | None) -> None:
        self.scene.journal.retry_failed(codes)

    @rule(questions=st.lists(st.integers(0, 3), max_size=4))
    def append(self, questions: list[int]) -> None:
        self.scene.append(self._lines(questions))

    @rule(log=st.sampled_from(Log), share=st.floats(0, 1))
    def lose_the_end(self, log: Log, share: float) -> None:
        file = self.scene.logs[log]
        _, end = self.scene.journal.forget_beyond(log, int(file.length * share))
        file.commit(end)
        file.cut()

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "scene"):
            self.scene.assert_sound()

    def teardown(self) -> None:
        if not hasattr(self, "scene"):
            return
        self._open()
        while runnable := self.scene.runnable():
            self.scene.commit(self.scene.finish(runnable[0]))
        assert self.scene.journal.open_lines() == 0
        self.scene.assert_sound()
        self.scene.inputs.close()
        self.scene.journal.close()


def test_any_history_ends_with_one_record_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folders() -> Iterator[Path]:
        number = 0
        while True:
            folder = tmp_path / str(number)
            folder.mkdir()
            yield folder
            number += 1

    monkeypatch.setattr(twins_module, "PAGE", 2)
    monkeypatch.setattr(AnyHistory, "folders", folders(), raising=False)
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        AnyHistory, settings=settings(max_examples=40, stateful_step_count=12, deadline=None)
    )

"""A Parquet output: each record in the row of its own, the input's columns kept, whatever the input is."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sglang.batch.input.rows import RowFormat
from sglang.batch.input.source import Source, find_sources
from sglang.batch.records import Answer, BatchFailure, BatchRequest, Usage, answer_record, failure_record
from sglang.batch.run.files import JobFiles
from sglang.batch.run.journal import Journal, Log, Recorded
from sglang.batch.run.parquet import ANSWER, GROUP_BYTES, ROW_GROUP, check_parquet, write_parquet
from sglang.batch.run.record_log import RecordLog
from sglang.batch.run.scan import scan
from sglang.batch.usage import BadUsage

ROWS = RowFormat((("", "text"),), None, None, "/v1/completions", {}, {})


class Job:
    """A scanned input, and a log with a record for each of its lines, the last line's first."""

    def __init__(self, folder: Path, *names: str, rows: RowFormat | None = ROWS) -> None:
        self.output = folder / "out.parquet"
        files = JobFiles.of(self.output, "-")
        files.make_work()
        self.sources: tuple[Source, ...] = find_sources([str(folder / name) for name in names], rows=rows)
        self.journal = Journal(files.journal, create=True)
        scan(self.journal, self.sources, files).close()
        self.log = RecordLog(folder / "log", length=0)
        self.positions = [row.position for row in self.journal.lines()]

    def record(self, records: dict[int, bytes]) -> None:
        raws = [records[position] for position in sorted(records, reverse=True)]
        spans = self.log.append(raws)
        done = zip(sorted(records, reverse=True), spans, strict=True)
        self.journal.record([Recorded(position, Log.ANSWERS, span, None, Usage()) for position, span in done])

    def record_all(self) -> None:
        self.record({position: answered(f"row-{position + 1}") for position in self.positions})

    def write(self) -> pa.Table:
        write_parquet(self.output, self.journal, self.log, self.sources)
        return pq.read_table(self.output)


def answered(custom_id: str, **body: Any) -> bytes:
    request = BatchRequest(1, custom_id, "/v1/completions", {})
    choice = {"text": f"answer of {custom_id}", "finish_reason": "length"}
    fields = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, **body}
    return answer_record(request, Answer(200, json.dumps(fields).encode()))


def test_answers_are_in_the_rows_they_answer(tmp_path: Path) -> None:
    table = pa.table({"text": [f"t{i}" for i in range(1000)], "n": range(1000)})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=300)
    job = Job(tmp_path, "in.parquet")
    job.record_all()
    found = job.write()
    assert found.column_names == ["text", "n", *ANSWER.names]
    assert found.select(["text", "n"]).equals(table)
    assert found["custom_id"].to_pylist() == [f"row-{i + 1}" for i in range(1000)]
    assert found["response_text"].to_pylist() == [f"answer of row-{i + 1}" for i in range(1000)]
    assert set(found["finish_reason"].to_pylist()) == {"length"}
    assert set(found["completion_tokens"].to_pylist()) == {4}
    response = json.loads(found["response"][7].as_py())
    assert response["status_code"] == 200
    assert response["body"]["choices"][0]["text"] == "answer of row-8"


def test_an_input_that_is_no_table_has_the_answers_only(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"custom_id": "a"}\n{"custom_id": "b"}\n')
    job = Job(tmp_path, "in.jsonl", rows=None)
    job.record({0: answered("a"), 1: answered("b")})
    found = job.write()
    assert found.column_names == ANSWER.names
    assert found["custom_id"].to_pylist() == ["a", "b"]


def test_tables_of_several_kinds_have_their_columns_united(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "n": pa.array([1], pa.int32())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": pa.array([2], pa.int64()), "text": ["b"]}), tmp_path / "b.parquet")
    (tmp_path / "c.csv").write_text("text,more\nc,\nd,x\n")
    (tmp_path / "d.jsonl").write_text('{"text": "e"}\n')
    job = Job(tmp_path, "a.parquet", "b.parquet", "c.csv", "d.jsonl")
    job.record_all()
    found = job.write()
    assert found["text"].to_pylist() == ["a", "b", "c", "d", None]
    assert found["n"].to_pylist() == [1, 2, None, None, None]
    assert found["more"].to_pylist() == [None, None, None, "x", None]
    assert found["custom_id"].to_pylist() == [f"row-{i}" for i in range(1, 6)]


def test_errors_are_rows_with_code_and_message(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None, "c"]}), tmp_path / "in.parquet")
    job = Job(tmp_path, "in.parquet")
    refused = Answer(
        400, b'{"object": "error", "message": "too long"}', code="BadRequestError", message="too long"
    )
    job.record(
        {
            0: answer_record(BatchRequest(1, "row-1", "", {}), refused),
            1: failure_record(BatchFailure(2, "row-2", "invalid_row", "row 2: is null")),
            2: answered("row-3"),
        }
    )
    found = job.write()
    assert found["error_code"].to_pylist() == ["BadRequestError", "invalid_row", None]
    assert found["error_message"].to_pylist() == ["too long", "row 2: is null", None]
    assert found["response_text"].to_pylist() == [None, None, "answer of row-3"]
    assert found["response"][1].as_py() is None
    assert json.loads(found["response"][0].as_py())["status_code"] == 400


def test_rows_without_a_record_are_left_out(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), tmp_path / "in.parquet")
    job = Job(tmp_path, "in.parquet")
    job.record({2: answered("row-3"), 0: answered("row-1")})
    assert job.write().select(["text", "custom_id"]).to_pylist() == [
        {"text": "a", "custom_id": "row-1"},
        {"text": "c", "custom_id": "row-3"},
    ]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}, "hi"),
        ({"choices": [{"message": {"content": ""}}]}, ""),
        ({"choices": [{"message": {"content": None, "tool_calls": []}}]}, None),
        ({"choices": []}, None),
        ({"choices": None, "usage": None, "data": [{"embedding": [0.5]}]}, None),
        ({"choices": [{"text": ["no", "text"], "finish_reason": {"type": "x"}}]}, None),
    ],
)
def test_the_text_of_the_first_choice_is_a_column(
    body: dict[str, Any], text: str | None, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "in.parquet")
    job = Job(tmp_path, "in.parquet")
    job.record({0: answered("row-1", **body)})
    found = job.write()
    assert found["response_text"].to_pylist() == [text]
    assert json.loads(found["response"][0].as_py())["body"]["choices"] == body["choices"]


def test_input_columns_give_way_to_the_answers(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "response": ["r"], "input_response": ["i"], "custom_id": ["c"]})
    pq.write_table(table, tmp_path / "in.parquet")
    job = Job(tmp_path, "in.parquet")
    job.record_all()
    (row,) = job.write().to_pylist()
    kept = {name: row[name] for name in row if name.startswith("input_")}
    assert kept == {"input_input_response": "r", "input_response": "i", "input_custom_id": "c"}
    assert row["custom_id"] == "row-1"


@pytest.mark.parametrize("change", ["another text", "a row less"])
def test_an_answer_never_gets_into_another_row(change: str, tmp_path: Path) -> None:
    texts = ["a", "b", "c"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    job = Job(tmp_path, "in.parquet")
    job.record_all()
    changed = ["a", "B", "c"] if change == "another text" else texts[:2]
    pq.write_table(pa.table({"text": changed}), tmp_path / "in.parquet")
    with pytest.raises(BadUsage, match=r"in\.parquet: row [23] has changed"):
        job.write()
    pq.write_table(pa.table({"text": [*texts, "added meanwhile"]}), tmp_path / "in.parquet")
    assert job.write()["text"].to_pylist() == texts


def test_row_groups_are_bounded(tmp_path: Path) -> None:
    rows = 2 * ROW_GROUP + 5
    pq.write_table(pa.table({"text": [str(i) for i in range(rows)]}), tmp_path / "in.parquet")
    job = Job(tmp_path, "in.parquet")
    job.record_all()
    assert job.write().num_rows == rows
    metadata = pq.read_metadata(job.output)
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert max(sizes) <= ROW_GROUP
    assert len(sizes) == 3
    assert GROUP_BYTES < 1 << 30


def test_columns_that_do_not_fit_are_refused_before_anything_runs(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a"], "n": [[1]]}), tmp_path / "b.parquet")
    with pytest.raises(BadUsage, match="do not fit into one table"):
        check_parquet(find_sources([f"{tmp_path}/*.parquet"], rows=ROWS))
    (tmp_path / "c.csv").write_text("text,text\na,b\n")
    with pytest.raises(BadUsage, match="two columns have one name"):
        check_parquet(find_sources([f"{tmp_path}/c.csv"], rows=ROWS))

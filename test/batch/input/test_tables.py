"""Rows become requests: from every kind of table the same ones, a bad row costs itself only."""

import argparse
import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.batch import cli
from sglang.batch.input.rows import RowFormat, add_row_arguments, row_format
from sglang.batch.input.source import find_sources, read_sources
from sglang.batch.records import BatchFailure, BatchRequest, parse_lines
from sglang.batch.usage import BadUsage

TEXTS = ["Hä?", 'a "quoted"\nline', "{braces}", "𝄞"]
TABLE = pa.table({"text": TEXTS, "n": [str(i) for i in range(len(TEXTS))], "other": ["x"] * len(TEXTS)})


def flags(*argv: str) -> RowFormat | None:
    parser = argparse.ArgumentParser()
    add_row_arguments(parser)
    return row_format(parser.parse_args(argv))


def requests(path: Path | list[Path], *argv: str) -> list[BatchRequest | BatchFailure]:
    names = [str(one) for one in (path if isinstance(path, list) else [path])]
    return list(parse_lines(read_sources(find_sources(names, rows=flags(*argv)))))


def problems(path: Path, *argv: str) -> list[tuple[int, str | None, str, str]]:
    items = requests(path, *argv)
    return [
        (item.line, item.custom_id, item.code, item.message)
        for item in items
        if isinstance(item, BatchFailure)
    ]


def write_csv(table: pa.Table, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table.column_names, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(table.to_pylist())


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def write_file(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def write_jsonl(table: pa.Table, path: Path) -> None:
    path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))


def gzipped(write: Callable[[pa.Table, Path], None]) -> Callable[[pa.Table, Path], None]:
    def packed(table: pa.Table, path: Path) -> None:
        write(table, path)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return packed


def utf16(table: pa.Table, path: Path) -> None:
    write_csv(table, path)
    path.write_bytes(path.read_text().encode("utf-16"))


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "t.parquet": pq.write_table,
    "parquet without a suffix": pq.write_table,
    "t.arrow": write_stream,
    "file.arrow": write_file,
    "t.csv": write_csv,
    "utf16.csv": utf16,
    "t.tsv": write_csv,
    "t.csv.gz": gzipped(write_csv),
    "t.jsonl": write_jsonl,
    "t.jsonl.gz": gzipped(write_jsonl),
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_requests_come_out_of_every_kind_of_table(name: str, tmp_path: Path) -> None:
    WRITERS[name](TABLE, tmp_path / name)
    found = requests(
        tmp_path / name, "--prompt-template", "Say {{}} {n}: {text}!", "--param", "max_tokens=64"
    )
    assert found == [
        BatchRequest(
            i + 1,
            f"row-{i + 1}",
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": f"Say {{}} {i}: {text}!"}], "max_tokens": 64},
        )
        for i, text in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("name", WRITERS)
def test_a_null_costs_its_own_row_only(name: str, tmp_path: Path) -> None:
    table = pa.table({"text": ["a", None, "c"], "id": ["x", "y", None]})
    WRITERS[name](table, tmp_path / name)
    argv = ("--prompt-template", "{text}", "--id-column", "id")
    assert problems(tmp_path / name, *argv) == [
        (2, "y", "invalid_row", "row 2: column 'text' is null"),
        (3, None, "invalid_row", "row 3: column 'id' is null"),
    ]


def test_rows_are_numbered_over_all_inputs(tmp_path: Path) -> None:
    for name, rows in (("a.parquet", 300), ("b.parquet", 2), ("c.parquet", 1)):
        pq.write_table(pa.table({"text": ["x"] * rows}), tmp_path / name)
    write_jsonl(TABLE, tmp_path / "d.jsonl")
    found = requests(tmp_path, "--prompt-template", "{text}")
    assert [item.custom_id for item in found] == [f"row-{i}" for i in range(1, 308)]


def test_many_row_groups_and_batches_are_read_to_the_end(tmp_path: Path) -> None:
    table = pa.table({"text": [str(i) for i in range(2000)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=7)
    found = requests(tmp_path / "t.parquet", "--prompt-template", "{text}", "--url", "/v1/completions")
    assert [item.body for item in found if isinstance(item, BatchRequest)] == [
        {"prompt": str(i)} for i in range(2000)
    ]


@pytest.mark.parametrize("as_json", [False, True])
def test_messages_are_a_column_as_a_list_or_as_json(as_json: bool, tmp_path: Path) -> None:
    chats: list[list[dict[str, Any]]] = [
        [{"role": "system", "content": "s"}, {"role": "user", "content": "u", "name": "n"}],
        [{"role": "user", "content": "v"}],
    ]
    column = [json.dumps(chat) for chat in chats] if as_json else chats
    pq.write_table(pa.table({"chat": column}), tmp_path / "t.parquet")
    found = requests(tmp_path / "t.parquet", "--messages-column", "chat")
    assert [item.body["messages"] for item in found if isinstance(item, BatchRequest)] == chats


def test_what_is_no_list_of_messages_is_an_error_record(tmp_path: Path) -> None:
    rows: list[Any] = ["hello", {"role": "user"}, ["a"], 5, None, [{"role": "user", "content": "x"}]]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"m": row}) + "\n" for row in rows) + '{"n": 1}\n')
    found = problems(tmp_path / "t.jsonl", "--messages-column", "m")
    assert [(line, code) for line, _, code, _ in found] == [(i, "invalid_row") for i in (1, 2, 3, 4, 5, 7)]
    assert "missing" in found[-1][3]


def test_lines_that_are_no_objects_are_refused_as_ever(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "a"}\n\n[1]\n{"text": "\xff"}\n{"text": "b"}\n')
    items = requests(tmp_path / "t.jsonl", "--prompt-template", "{text}")
    assert [(item.line, item.custom_id) for item in items] == [
        (1, "row-1"),
        (3, None),
        (4, None),
        (5, "row-4"),
    ]
    assert {item.code for item in items if isinstance(item, BatchFailure)} == {"invalid_json_line"}


def test_a_csv_row_with_other_cells_than_the_header_costs_itself_only(tmp_path: Path) -> None:
    raw = b'a,text\n1,x\n2,y,z\n3\n\n4,"two\nlines"\n5,\xff\n6,' + b"long" * 50_000 + b"\n"
    (tmp_path / "t.csv").write_bytes(raw)
    found = problems(tmp_path / "t.csv", "--prompt-template", "{text}")
    assert [(line, message) for line, _, _, message in found] == [
        (2, "row 2: has 3 cells, the header 2"),
        (3, "row 3: column 'text' is missing"),
        (5, "row 5: holds bytes that are not UTF-8"),
    ]


def test_ids_may_be_numbers_and_a_second_one_is_a_duplicate(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "id": [7, 8, 7]}), tmp_path / "t.parquet")
    items = requests(tmp_path / "t.parquet", "--prompt-template", "{text}", "--id-column", "id")
    assert [item.custom_id for item in items] == ["7", "8", "7"]
    assert isinstance(items[2], BatchFailure)
    assert items[2].code == "duplicate_custom_id"


def test_values_are_written_as_text(tmp_path: Path) -> None:
    columns = {"a": [1.5], "b": [True], "c": [[1, 2]], "d": [{"k": "v"}], "e": ["é"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    (item,) = requests(
        tmp_path / "t.parquet", "--prompt-template", "{a} {b} {c} {d} {e}", "--url", "/v1/completions"
    )
    assert isinstance(item, BatchRequest)
    assert item.body == {"prompt": '1.5 true [1,2] {"k":"v"} é'}


def test_bytes_are_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [b"x"]}), tmp_path / "t.parquet")
    ((_, _, _, message),) = problems(tmp_path / "t.parquet", "--prompt-template", "{a}")
    assert "holds bytes" in message


def test_a_dataset_that_was_saved_to_disk_is_its_own_files(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(10)]})
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(
        tmp_path / "d", num_shards={"train": 3, "test": 1}
    )
    write_stream(TABLE, tmp_path / "d" / "train" / "cache-123.arrow")
    found = requests(tmp_path / "d" / "train", "--prompt-template", "{text}", "--url", "/v1/completions")
    assert [item.body["prompt"] for item in found if isinstance(item, BatchRequest)] == data["text"][:]
    with pytest.raises(BadUsage, match="several splits; name one: train, test"):
        requests(tmp_path / "d", "--prompt-template", "{text}")


def test_a_folder_without_row_flags_is_its_requests_only(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert [Path(source.name).name for source in find_sources([str(tmp_path)])] == ["a.jsonl"]


def test_a_column_that_a_table_does_not_have_is_named_with_those_it_has(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    with pytest.raises(BadUsage, match="has no column 'txt'; it has text, n, other"):
        requests(tmp_path / "t.parquet", "--prompt-template", "{txt}")


@pytest.mark.parametrize("name", ["t.parquet", "file.arrow", "t.arrow"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_table_that_is_cut_off_is_named(name: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](pa.table({"text": [f"{i} {'x' * 100}" for i in range(100)]}), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(BadUsage, match=name):
        requests(path, "--prompt-template", "{text}")


def test_a_table_without_a_header_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(BadUsage, match=r"t\.csv.*no header"):
        requests(tmp_path / "t.csv", "--prompt-template", "{text}")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--param", "a=1"], "--param: give --prompt-template or --messages-column"),
        (["--prompt-template", "{a}", "--messages-column", "m"], "one of them"),
        (["--prompt-template", "no column"], "names no column"),
        (["--prompt-template", "{a"], "write {{ and }}"),
        (["--prompt-template", "{a:>3}"], "without : and !"),
        (["--prompt-template", "{}"], "name of a column"),
        (["--prompt-template", "@none"], "@none: cannot be read"),
        (["--prompt-template", "{a}", "--url", "/v1/nothing"], "choose one of /v1/chat/completions"),
        (["--messages-column", "m", "--url", "/v1/completions"], "--messages-column: makes requests for"),
        (["--prompt-template", "{a}", "--param", "max_tokens"], "write NAME=VALUE"),
        (["--prompt-template", "{a}", "--param", "messages=[]"], "comes from the rows"),
    ],
)
def test_flags_that_make_no_request_are_bad_usage(argv: list[str], says: str) -> None:
    with pytest.raises(BadUsage) as raised:
        flags(*argv)
    assert says in str(raised.value)


def test_a_template_may_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text("Two\nlines: {text}\n")
    made = flags("--prompt-template", f"@{tmp_path / 'prompt'}")
    assert made is not None
    assert made.template == (("Two\nlines: ", "text"),)


def test_a_table_without_a_template_is_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    assert cli.main(["validate", "-i", str(tmp_path / "t.parquet")]) == 2
    assert "is a table; say with --prompt-template" in capsys.readouterr().err


def test_validate_counts_the_rows_that_give_no_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"text": ["a", None, "b", None]}), tmp_path / "t.parquet")
    assert cli.main(["validate", "-i", str(tmp_path / "t.parquet"), "--prompt-template", "{text}"]) == 1
    out = capsys.readouterr().out
    assert "2 of 4 lines can be run" in out
    assert "row 2: column 'text' is null" in out


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "é\n", "\ud800", "[{}]"])
    | st.just(b"\xff"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xy"), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "id"]), VALUES),
    st.sampled_from(["template", "messages", "id"]),
)
def test_every_row_is_one_line_that_is_read_without_an_error_of_ours(row: dict[str, Any], kind: str) -> None:
    made = RowFormat(
        template=() if kind == "messages" else (("", "a"), ("-", "b")),
        messages="a" if kind == "messages" else None,
        id="id" if kind == "id" else None,
        url="/v1/chat/completions",
        params={"n": 1},
        flags={},
    )
    line = made.line(row, 1)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    json.loads(line)

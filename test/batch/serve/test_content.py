"""What is wrong with a file, by code and line."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest
from echo_jobs import request

from sglang.batch.serve import content as module
from sglang.batch.serve.content import SHOWN, check_content

URL = "/v1/completions"


def errors(folder: Path, content: bytes, most: int = 1000) -> list[tuple[str, int | None]]:
    path = folder / "input.jsonl"
    path.write_bytes(content)
    found = check_content(path, endpoint=URL, most=most)
    return [(error["code"], error["line"]) for error in found.errors]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (request("a", model="m") + b"\n" + request("b", model="m") + request("c"), []),
        (b"", [("empty_file", None)]),
        (b"\n \n", [("empty_file", None)]),
        (b"[1]\n" + request("a"), [("invalid_json_line", 1)]),
        (request("a") + request("a"), [("duplicate_custom_id", 2)]),
        (request("a", model="m") + request("b", model="n"), [("model_mismatch", 2)]),
        (request("a").replace(b"completions", b"chat/completions"), [("url_mismatch", 1)]),
        (request("a").replace(b"/v1/completions", b"/v1/nowhere"), [("invalid_url", 1)]),
        (request("a").replace(b"POST", b"GET"), [("invalid_method", 1)]),
        (request("a", stream=True), [("stream_not_supported", 1)]),
        (gzip.compress(request("a"), mtime=0), [("invalid_json_line", None)]),
    ],
)
def test_each_fault_has_its_code_and_line(
    content: bytes, expected: list[tuple[str, int | None]], tmp_path: Path
) -> None:
    assert errors(tmp_path, content) == expected


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_a_line_that_is_too_long_is_named(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    monkeypatch.setattr(module, "LONGEST_LINE", len(request("aa")) - 1)
    assert errors(tmp_path, request("a") + b"\n" + request("aa") + request("b")) == []
    assert errors(tmp_path, request("a") + b"\n" + request("aaa") + request("b")) == [("line_too_long", 3)]
    assert errors(tmp_path, request("a") * 2 + request("aaa").rstrip()) == [("line_too_long", 3)]


def test_a_file_has_so_many_requests_at_most(tmp_path: Path) -> None:
    content = b"".join(request(str(i)) for i in range(4))
    assert errors(tmp_path, content, most=4) == []
    assert errors(tmp_path, content, most=3) == [("too_many_tasks", None)]


def test_so_many_errors_are_listed_at_most(tmp_path: Path) -> None:
    assert len(errors(tmp_path, b"{\n" * (SHOWN + 50))) == SHOWN


def test_lines_and_model_are_told(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(request("a") + request("b", model="m"))
    found = check_content(path, endpoint=URL, most=9)
    assert (found.lines, found.model) == (2, "m")


WATCHED = """
import light_sglang, re, sys
from pathlib import Path
from sglang.batch.serve.content import check_content

def most() -> int:
    return int(re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[0])

before = most()
found = check_content(Path(sys.argv[1]), endpoint="/v1/completions", most=10**9)
print(found.lines, [(error["code"], error["line"]) for error in found.errors], (most() - before) / 1024)
"""


def test_a_duplicate_among_very_many_long_ids_is_found_in_bounded_memory(tmp_path: Path) -> None:
    count, path = 100_000, tmp_path / "input.jsonl"
    with path.open("wb") as file:
        file.writelines(request(f"{i:0300}") for i in range(count))
        file.write(request(f"{5:0300}"))
    faults = Path(__file__).parents[2] / "faults"
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(path)], capture_output=True, text=True, check=True, cwd=faults
    )
    found, megabytes = done.stdout.rsplit(maxsplit=1)
    assert found == f"{count + 1} [('duplicate_custom_id', {count + 1})]"
    assert float(megabytes) < 20, "ids as they are would take 35"

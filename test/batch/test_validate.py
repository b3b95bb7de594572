"""A file is checked without an engine; the exit code is what a run's would be."""

from pathlib import Path

import pytest
from stand_ins import line

from sglang.batch import cli


def validate(*argv: object) -> int:
    return cli.main(["validate", *map(str, argv)])


def test_a_good_file_is_exit_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(line("a") + b"\n" + line("b"))
    assert validate("-i", tmp_path) == 0
    assert capsys.readouterr().out == "2 of 2 lines can be run\n"


def test_bad_lines_are_counted_by_code_and_some_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line("a") + b"{\n" * 9 + line("a") + line("c", method="GET"))
    assert validate("-i", path) == 1
    out = capsys.readouterr().out
    assert "1 of 12 lines" in out
    assert "invalid_json_line        9" in out
    assert out.count("is not JSON") == 3
    assert "duplicate_custom_id      1" in out


def test_values_that_no_engine_may_see_are_found_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    bodies = [{"prompt": [100000]}, {"prompt": "x", "n": 2147483647}, {"prompt": "x", "stop_regex": "(?P"}]
    path.write_bytes(b"".join(line(str(i), body=body) for i, body in enumerate(bodies)))
    assert validate("-i", path) == 1
    out = capsys.readouterr().out
    assert "1 of 3 lines" in out
    assert "BadRequestError          2" in out
    assert "line 2: n: a line may ask for 4096 answers" in out


def test_what_a_run_would_not_read_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.png").write_bytes(b"a")

    def picture(custom_id: str, url: str) -> bytes:
        content = [{"type": "image_url", "image_url": {"url": url}}]
        body = {"messages": [{"role": "user", "content": content}]}
        return line(custom_id, url="/v1/chat/completions", body=body)

    path = tmp_path / "a.jsonl"
    path.write_bytes(
        picture("a", "data:image/png;base64,AAAA")
        + picture("b", str(tmp_path / "media" / "a.png"))
        + picture("c", "http://example.org/a.png")
    )
    assert validate("-i", path) == 1
    out = capsys.readouterr().out
    assert "media_not_allowed        2" in out
    assert "line 3: messages.0.content.0.image_url.url: nothing is downloaded" in out
    allowed = ("--allow-local-media", tmp_path / "media", "--allow-remote-media", "example.org")
    assert validate("-i", path, *allowed) == 0


def test_bad_usage_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate("-i", tmp_path / "none.jsonl") == 2
    assert "none.jsonl" in capsys.readouterr().err

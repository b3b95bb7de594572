"""Whatever a file is packed or written in, and whatever a name means: the same lines come out."""

import codecs
import gzip
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sglang.batch.input.lines import UTF8_MARK, bare, content_hash, read_lines
from sglang.batch.input.source import HEAD, Source, find_sources, open_source
from sglang.batch.usage import BadUsage

TEXT = '{"a": "ü"}\n\n{"b": "𝄞"}\n{"c": 3}'
EXPECTED = [(1, '{"a": "ü"}'), (3, '{"b": "𝄞"}'), (4, '{"c": 3}')]
PLAIN = TEXT.encode()

FORMS = {
    "plain": PLAIN,
    "CRLF": PLAIN.replace(b"\n", b"\r\n"),
    "CR only": PLAIN.replace(b"\n", b"\r"),
    "mark at the start": UTF8_MARK + PLAIN,
    "marks at later lines": PLAIN.replace(b"\n{", b"\n" + UTF8_MARK + b"{"),
    "two marks": UTF8_MARK * 2 + PLAIN,
    "gzip": gzip.compress(PLAIN),
    "gzip in two members": gzip.compress(PLAIN[:14]) + gzip.compress(PLAIN[14:]),
    "zstd": zstandard.compress(PLAIN),
    "zstd in two frames": zstandard.compress(PLAIN[:14]) + zstandard.compress(PLAIN[14:]),
    "UTF-16 with a mark": TEXT.encode("utf-16"),
    "UTF-16 big endian with a mark": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "UTF-16 little endian": TEXT.encode("utf-16-le"),
    "UTF-16 big endian": TEXT.encode("utf-16-be"),
    "UTF-32": TEXT.encode("utf-32"),
    "UTF-16 in gzip": gzip.compress(TEXT.encode("utf-16")),
    "gzip in zstd": zstandard.compress(gzip.compress(PLAIN)),
}


def read(source: Source) -> list[tuple[int, str]]:
    with open_source(source) as opened:
        return [(line.number, line.text.decode()) for line in read_lines(opened.lines)]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_lines_come_out_of_every_form(form: str, tmp_path: Path) -> None:
    path = tmp_path / "requests"
    path.write_bytes(FORMS[form])
    assert read(Source("requests", path)) == EXPECTED


@pytest.mark.parametrize("form", FORMS)
def test_a_line_that_is_read_in_place_is_found_at_its_offset(form: str, tmp_path: Path) -> None:
    path = tmp_path / "requests"
    path.write_bytes(FORMS[form])
    with open_source(Source("requests", path)) as opened:
        lines = list(read_lines(opened.lines))
    if opened.in_place:
        for line in lines:
            assert bare(FORMS[form][line.offset : line.offset + len(line.raw)]) == line.text
    else:
        assert "gzip" in form or "zstd" in form or "UTF" in form


@pytest.mark.parametrize("form", ["plain", "gzip", "UTF-16 with a mark"])
def test_standard_input_may_come_a_byte_at_a_time(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.RawIOBase):
        def __init__(self) -> None:
            self.left = FORMS[form]

        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:
            byte, self.left = self.left[:1], self.left[1:]
            buffer[: len(byte)] = byte
            return len(byte)

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Slow())))
    (source,) = find_sources(["-"])
    assert read(source) == EXPECTED


def test_a_carriage_return_at_the_end_of_the_head_is_no_line_end(tmp_path: Path) -> None:
    path = tmp_path / "requests"
    long = b'"' + b"x" * (HEAD - 3) + b'"\r\n{}'
    path.write_bytes(long)
    assert [number for number, _ in read(Source("requests", path))] == [1, 2]


@pytest.mark.parametrize("whole", [gzip.compress(PLAIN * 99, mtime=0), zstandard.compress(PLAIN * 99)])
def test_a_damaged_file_is_named(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "requests.gz"
    path.write_bytes(whole[:20] + b"\xff" * 20)
    with pytest.raises(BadUsage, match="requests.gz"):
        read(Source(str(path), path))


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("missing", [1, 5, 20])
def test_a_file_that_is_cut_off_is_named(
    compress: Callable[[bytes], bytes], missing: int, tmp_path: Path
) -> None:
    path = tmp_path / "requests.gz"
    path.write_bytes(compress(os.urandom(99))[:-missing])
    with pytest.raises(BadUsage, match="requests.gz"):
        read(Source(str(path), path))


def test_half_a_character_of_utf16_costs_its_line_only(tmp_path: Path) -> None:
    path = tmp_path / "requests"
    path.write_bytes(TEXT.encode("utf-16")[:-1])
    with open_source(Source("requests", path)) as opened:
        texts = [line.text for line in read_lines(opened.lines)]
    assert [text.decode() for text in texts[:2]] == [text for _, text in EXPECTED[:2]]
    with pytest.raises(UnicodeDecodeError):
        texts[2].decode()


def test_a_folder_and_a_glob_are_their_files_by_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "notes.txt", "c.ndjson"):
        (tmp_path / name).write_bytes(PLAIN)
    (tmp_path / "d.jsonl").mkdir()
    assert [Path(s.name).name for s in find_sources([str(tmp_path)])] == ["a.jsonl.gz", "b.jsonl", "c.ndjson"]
    assert [Path(s.name).name for s in find_sources([f"{tmp_path}/?.jsonl"])] == ["b.jsonl"]
    both = find_sources([f"{tmp_path}/b*", f"{tmp_path}/a.jsonl.gz"])
    assert [Path(source.name).name for source in both] == ["b.jsonl", "a.jsonl.gz"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_bytes(PLAIN)
    (source,) = find_sources([f"{tmp_path}/a[1].jsonl"])
    assert read(source) == EXPECTED


def test_an_output_in_the_same_folder_is_no_input(tmp_path: Path) -> None:
    for name in ("in.jsonl", "out.jsonl", "out.jsonl.errors.jsonl", "outer.jsonl"):
        (tmp_path / name).write_bytes(PLAIN)
    found = find_sources([str(tmp_path)], without=tmp_path / "out.jsonl")
    assert [Path(source.name).name for source in found] == ["in.jsonl", "outer.jsonl"]


@pytest.mark.parametrize("name", ["none.jsonl", "none*.jsonl", "."])
def test_what_means_nothing_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="--input"):
        find_sources([str(tmp_path / name)])


def test_standard_input_is_read_once() -> None:
    with pytest.raises(BadUsage, match="only once"):
        find_sources(["-", "-"])


@given(st.lists(st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"") + b"\n")))
def test_every_line_that_is_not_blank_is_read_once_and_found_again(raws: list[bytes]) -> None:
    stream = b"".join(raws)
    lines = list(read_lines(raws))
    assert [line.number for line in lines] == [i for i, raw in enumerate(raws, 1) if bare(raw)]
    assert all(stream[line.offset : line.offset + len(line.raw)] == line.raw for line in lines)


def test_space_and_marks_around_a_line_do_not_change_its_hash() -> None:
    assert content_hash(b"{}") == content_hash(UTF8_MARK + b" {} \r\n")
    assert content_hash(b"{}") != content_hash(b"{ }")

"""Addresses are read through fsspec: a loopback HTTP server and fsspec's own memory stand for the rest."""

import gzip
import http.server
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import pytest
from stand_ins import line

from sglang.batch import cli
from sglang.batch.input.remote import shown
from sglang.batch.input.rows import RowFormat
from sglang.batch.input.source import find_sources, read_sources
from sglang.batch.usage import BadUsage

LINES = line("a") + line("b")
ROWS = RowFormat((("Say: ", "text"),), None, None, "/v1/completions", {}, {})


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files whole: it does not know ranges."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if "cut-off" not in self.path:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", str(len(LINES) * 2))
        self.end_headers()
        self.wfile.write(LINES)

    def do_HEAD(self) -> None:
        if "cut-off" not in self.path:
            return super().do_HEAD()
        self.send_response(200)
        self.end_headers()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of a server that serves `tmp_path`."""
    handler = partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def texts(*names: str, rows: RowFormat | None = None) -> list[bytes]:
    return [one.text + b"\n" for one in read_sources(find_sources(names, rows=rows))]


@pytest.mark.parametrize("form", ["plain", "gzip"])
def test_a_file_is_read_over_http(form: str, server: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(gzip.compress(LINES) if form == "gzip" else LINES)
    assert b"".join(texts(f"{server}/in?token=1")) == LINES


def test_a_table_is_read_from_a_server_that_serves_no_ranges(server: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["x", "y"]}), tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text("text\nz\n")
    found = b"".join(texts(f"{server}/in.parquet", f"{server}/in.csv", rows=ROWS))
    assert [f"Say: {text}".encode() in found for text in "xyz"] == [True] * 3
    assert b"row-3" in found


def test_what_http_does_not_have_is_named_without_its_secrets(server: str) -> None:
    address = server.replace("//", "//me:secret@")
    with pytest.raises(BadUsage, match=r"none\.jsonl: does not exist") as raised:
        texts(f"{address}/none.jsonl?token=secret")
    assert "secret" not in str(raised.value)


def test_a_transfer_that_is_cut_off_is_no_short_file(server: str) -> None:
    with pytest.raises(BadUsage, match="cut-off"):
        texts(f"{server}/cut-off.jsonl")


def test_a_server_that_is_not_there_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", "-i", "http://127.0.0.1:1/in.jsonl"]) == 2
    assert "http://127.0.0.1:1/in.jsonl" in capsys.readouterr().err


def test_folders_and_globs_of_a_store_are_their_files_by_name(memory: fsspec.AbstractFileSystem) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "notes.txt", "more/c.jsonl"):
        memory.pipe(f"/store/{name}", gzip.compress(LINES) if name.endswith("gz") else LINES)
    found = find_sources(["memory://store", "memory://store/*/c.jsonl"])
    assert [source.name.rpartition("/")[2] for source in found] == ["a.jsonl.gz", "b.jsonl", "c.jsonl"]
    assert b"".join(line.text + b"\n" for line in read_sources(found)) == LINES * 3
    with pytest.raises(BadUsage, match="no file matches"):
        find_sources(["memory://store/*.parquet"])


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(BadUsage, match=r"s3://bucket/in\.jsonl: needs the package s3fs; pip install s3fs"):
        find_sources(["s3://bucket/in.jsonl"])


def test_a_scheme_that_nobody_knows_is_named() -> None:
    with pytest.raises(BadUsage, match="nope://x/y: cannot be read"):
        find_sources(["nope://x/y"])


def test_an_address_is_shown_without_what_may_be_secret() -> None:
    assert shown("s3://bucket/a b.jsonl") == "s3://bucket/a b.jsonl"
    assert shown("https://u:p@h:1/x?sig=y#z") == "https://h:1/x"

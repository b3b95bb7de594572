"""`sglang-batch run --endpoint` as a user starts it."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from stand_ins import line
from web import WebServer, error, serving

from sglang.batch import cli
from sglang.batch.run.remote import dispatcher

SECRET = "sk-never-to-be-seen"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(dispatcher, "LONGEST_PROBE", 0.05)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    (tmp_path / "in.jsonl").write_bytes(b"".join(line(f"id-{i}", body={"prompt": f"{i}"}) for i in range(40)))
    return ["run", "-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]


def records(folder: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(text) for text in (folder / "out.jsonl").read_text().splitlines()]
    by_id = {record["custom_id"]: record for record in found}
    assert len(by_id) == len(found)
    return by_id


def test_a_run_needs_no_model(job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = WebServer(None)
    with serving(server):
        report = tmp_path / "report.json"
        assert cli.main([*job, "--endpoint", f"{server.url}/v1/=2", "--report", str(report)]) == 0
    assert len(records(tmp_path)) == 40
    told = json.loads(report.read_text())
    assert (told["answered"], told["device"], told["policy"]) == (40, "1 server", "planned here")
    assert server.url in capsys.readouterr().err


def test_a_refusal_makes_an_error_record_and_exit_code_1(job: list[str], tmp_path: Path) -> None:
    async def respond(server: WebServer, body: dict[str, Any]) -> Any:
        return error(422, "no") if body["prompt"] == "7" else None

    server = WebServer(respond)
    with serving(server):
        assert cli.main([*job, "--endpoint", server.url, "--quiet"]) == 1
    (record,) = (tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()
    assert json.loads(record)["response"]["status_code"] == 422


def test_a_run_that_lost_its_server_goes_on_at_another_place(job: list[str], tmp_path: Path) -> None:
    async def respond(server: WebServer, body: dict[str, Any]) -> None:
        if len(server.seen) == 15:
            threading.Thread(target=server.stop).start()

    first, second = WebServer(respond), WebServer(None)
    flags = ["--endpoint-patience", "0.5", "--endpoint-concurrency", "1", "--commit-ms", "0", "--quiet"]
    with serving(first):
        assert cli.main([*job, "--endpoint", first.url, *flags]) == 3
    with serving(second):
        assert cli.main([*job, "--endpoint", second.url, *flags]) == 0
    assert len(records(tmp_path)) == 40
    # At most the request that was under way is computed twice.
    assert len(set(first.answered) & set(second.answered)) <= 1


def test_another_model_is_refused_and_named(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = WebServer(None, model="llama"), WebServer(None, model="qwen")
    with serving(one, other):
        assert cli.main([*job, "--endpoint", one.url]) == 0
        with (tmp_path / "in.jsonl").open("ab") as file:
            file.write(line("new"))
        assert cli.main([*job, "--endpoint", other.url]) == 2
        assert "--model: was llama, is qwen" in capsys.readouterr().err
        assert cli.main([*job, "--endpoint", other.url, "--model", "llama"]) == 0
    assert len(records(tmp_path)) == 41


def test_a_secret_is_in_no_file_and_no_message(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = WebServer(None)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("MY_TOKEN", f"{SECRET}-2")
    with serving(server):
        assert cli.main([*job, "--endpoint", server.url]) == 0
        assert server.headers["Authorization"] == f"Bearer {SECRET}"
        headers = ["--endpoint-header", "Authorization: Bearer $MY_TOKEN", "--endpoint-header", "x-team: a b"]
        assert cli.main([*job, "--restart", "--endpoint", server.url, *headers]) == 0
        assert server.headers["Authorization"] == f"Bearer {SECRET}-2"
        assert server.headers["X-Team"] == "a b"
    assert SECRET not in "".join(capsys.readouterr())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".journal" for path in files)
    assert not any(SECRET.encode() in path.read_bytes() for path in files)


def test_without_a_server_the_run_fails_at_once(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = WebServer(None)
    with serving(server):
        pass
    assert cli.main([*job, "--endpoint", server.url]) == 3
    assert server.url in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--endpoint", "10.0.0.7:30000"], "http://host:port"),
        (["--endpoint", "http://"], "http://host:port"),
        (["--endpoint", "http://a:99999"], "http"),
        (["--endpoint", "http://a?key=b"], "http://host:port"),
        (["--endpoint", "http://a=0"], "weight"),
        (["--endpoint", "http://a=1.5"], "weight"),
        (["--endpoint", f"http://user:{SECRET}@a"], "--endpoint-header"),
        (["--endpoint", f"http://user:{SECRET}@a=2"], "--endpoint-header"),
        (["--endpoint", "http://a", "--endpoint", "http://a/v1"], "twice"),
        (["--endpoint", "http://a", "--endpoint-concurrency", "0"], "--endpoint-concurrency 0"),
        (["--endpoint", "http://a", "--endpoint-retries", "-1"], "--endpoint-retries -1"),
        (["--endpoint", "http://a", "--endpoint-timeout", "nan"], "--endpoint-timeout nan"),
        (["--endpoint", "http://a", "--endpoint-header", SECRET], "Name: value"),
        (["--endpoint", "http://a", "--endpoint-header", f"a: {SECRET}\nb"], "Name: value"),
        (["--endpoint", "http://a", "--dtype", "float32"], "--dtype"),
        (["--endpoint", "http://a", "--tokenizer-path", "/nowhere/at/all"], "--tokenizer-path"),
        (["--endpoint-concurrency", "5", "--model-path", "m"], "needs --endpoint"),
    ],
)
def test_bad_usage_is_one_line_without_secrets(
    flags: list[str], said: str, job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*job, *flags]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert len(message.splitlines()) == 1
    assert SECRET not in message


def test_neither_torch_nor_sglangs_engine_is_imported() -> None:
    script = """
import importlib.util, sys
from types import ModuleType
package = ModuleType("sglang")  # upstream's own __init__ imports torch
package.__path__ = importlib.util.find_spec("sglang").submodule_search_locations
sys.modules["sglang"] = package
import sglang.batch.cli, sglang.batch.run.remote.command
heavy = ("torch", "transformers", "sglang.srt.server_args", "sglang.srt.managers", "sglang.srt.entrypoints")
print([name for name in heavy if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"

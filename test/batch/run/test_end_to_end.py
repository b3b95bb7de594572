"""`sglang-batch run` as a user starts it: a process of its own, a real engine, a random Llama."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from stand_ins import line

from checkpoints import CONTEXT, make_llama
from sglang.batch.run.engine import leftovers
from sglang.batch.run.journal import Journal

START_SECONDS = 840  # for an engine on a busy machine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


def command(folder: Path, model: Path, *flags: str) -> list[str]:
    files = ["-i", str(folder / "requests.jsonl"), "-o", str(folder / "results.jsonl")]
    server = ["--model-path", str(model), "--dtype", "float32", "--random-seed", "1"]
    server.append("--no-learned-lengths")  # of the user's
    return [sys.executable, "-m", "sglang.batch.cli", "run", *files, *server, *flags]


def start(folder: Path, model: Path) -> subprocess.Popen[str]:
    """A run in a process group of its own."""
    return subprocess.Popen(
        command(folder, model, "--grace", "1"), stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_records(process: subprocess.Popen[str], results: Path, count: int) -> None:
    results = Path(f"{results}.partial")
    deadline = time.monotonic() + START_SECONDS
    while not (results.exists() and results.read_bytes().count(b"\n") >= count):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing was answered"
        time.sleep(0.1)


def wait_for_starts(process: subprocess.Popen[str], journal: Path, count: int) -> None:
    """Wait until the run's engine is up for the `count`th time."""
    deadline = time.monotonic() + START_SECONDS
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as connection:
        while True:
            (starts,) = connection.execute("SELECT COUNT(*) FROM event WHERE kind = 'start'").fetchone()
            if starts >= count:
                return
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, f"{starts} starts"
            time.sleep(0.1)


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def chat(custom_id: str, content: str, **body: Any) -> bytes:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0, **body}
    return line(custom_id, url="/v1/chat/completions", body=body)


def completion(custom_id: str, prompt: str, **body: Any) -> bytes:
    return line(custom_id, body={"prompt": prompt, "max_tokens": 8, "temperature": 0, **body})


def test_every_line_is_answered_or_has_an_error_with_its_number(tmp_path: Path, model: Path) -> None:
    shared = "Classify the sentence as positive or negative. " * 8
    lines = [
        *(chat(f"chat-{i}", f"{shared} Sentence {i}.") for i in range(12)),
        *(completion(f"text-{i}", f"{i} words", ignore_eos=True) for i in range(6)),
        completion("two", "a request", n=2, temperature=1),
        completion("list", ["a request", "another"]),
        completion("too-long", "word " * 2 * CONTEXT),
        completion("bad-value", "x", temperature=-1),
        completion("bad-type", "x", max_tokens="many"),
        completion("stream", "x", stream=True),
        line("unknown", url="/v1/moderations"),
        completion("text-0", "again"),
        b"{not json\n",
        b"\n",
        completion("last", "a request"),
    ]
    (tmp_path / "requests.jsonl").write_bytes(b"".join(lines))
    report_path = tmp_path / "report.json"
    flags = ["--max-total-tokens", "2048", "--context-length", str(CONTEXT), "--report", str(report_path)]

    done = subprocess.run(
        command(tmp_path, model, *flags), stderr=subprocess.PIPE, text=True, timeout=START_SECONDS
    )

    assert done.returncode == 1, done.stderr
    records = [json.loads(raw) for raw in (tmp_path / "results.jsonl").read_bytes().splitlines()]
    failed = [json.loads(raw) for raw in (tmp_path / "results.jsonl.errors.jsonl").read_bytes().splitlines()]
    assert len(records) + len(failed) == len(lines) - 1, "one record per line that is not blank"
    refused = {"too-long", "bad-value", "bad-type"}
    not_run = {"stream", "unknown", "text-0", None}
    assert {record["custom_id"] for record in failed} == refused | not_run
    assert {record["custom_id"] for record in failed if record["error"] is None} == refused
    replies = {record["custom_id"]: record["response"] for record in failed}
    assert "longer than" in replies["too-long"]["body"]["error"]["message"]
    assert replies["bad-value"]["status_code"] == 400
    (unread,) = [record["error"] for record in failed if record["custom_id"] is None]
    assert unread["line"] == len(lines) - 2

    bodies = {record["custom_id"]: record["response"]["body"] for record in records}
    assert bodies["chat-0"]["object"] == "chat.completion"
    assert bodies["chat-0"]["choices"][0]["message"]["role"] == "assistant"
    assert bodies["text-1"]["object"] == "text_completion"
    assert bodies["text-1"]["usage"]["completion_tokens"] == 8
    assert [len(bodies[name]["choices"]) for name in ("two", "list", "last")] == [2, 2, 1]

    report = json.loads(report_path.read_text())
    assert (report["answered"], report["failed"]) == (len(bodies), len(failed))
    assert report["prompt_tokens"] == sum(body["usage"]["prompt_tokens"] for body in bodies.values())
    assert report["sharing"] > 0.3, "the shared prefix of the chat requests was computed more than once"
    assert (report["policy"], report["device"]) == ("blend", "cpu")  # what upstream chose for want of a flag
    assert report["blend"]["hardware"] == "cpu"
    assert "tokens/s" in done.stderr


def test_ctrl_c_keeps_what_was_answered_and_says_how_much(tmp_path: Path, model: Path) -> None:
    endless = [completion(f"long-{i}", f"{i}", max_tokens=3000, ignore_eos=True) for i in range(8)]
    quick = [completion(f"quick-{i}", f"{i}", max_tokens=2) for i in range(4)]
    (tmp_path / "requests.jsonl").write_bytes(b"".join([*quick, *endless]))
    results = tmp_path / "results.jsonl"
    process = start(tmp_path, model)
    try:
        wait_for_records(process, results, 2)
        children = descendants(process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group gets it
        _, messages = process.communicate(timeout=120)
    finally:
        process.kill()

    partial = tmp_path / "results.jsonl.partial"
    answered = [json.loads(raw)["custom_id"] for raw in partial.read_bytes().splitlines()]
    assert process.returncode == 130, messages
    assert f"interrupted: {len(answered)} of" in messages
    assert 2 <= len(answered) < 12
    assert "Traceback" not in messages
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


@pytest.mark.parametrize("where", ["in this process", "in the scheduler's process"])
def test_an_engine_that_cannot_start_is_exit_code_3_and_leaves_no_output(
    where: str, tmp_path: Path, model: Path
) -> None:
    (tmp_path / "requests.jsonl").write_bytes(completion("a", "x"))
    if where == "in this process":
        (tmp_path / "config.json").write_text("{}")
        failing = command(tmp_path, tmp_path)
    else:
        torn = shutil.copytree(model, tmp_path / "torn")
        for weights in torn.glob("*.safetensors"):
            os.truncate(weights, weights.stat().st_size // 2)
        failing = command(tmp_path, torn)
    done = subprocess.run(failing, stderr=subprocess.PIPE, text=True, timeout=START_SECONDS)
    assert done.returncode == 3, done.stderr
    assert "the engine did not start" in done.stderr
    assert not (tmp_path / "results.jsonl").exists()


def test_an_engine_whose_process_is_killed_is_started_again_and_every_line_answered(
    tmp_path: Path, model: Path
) -> None:
    long = [completion(f"long-{i}", f"{i}", max_tokens=600, ignore_eos=True) for i in range(4)]
    (tmp_path / "requests.jsonl").write_bytes(b"".join([completion("quick", "x", max_tokens=2), *long]))
    journal = tmp_path / "results.jsonl.journal"
    process = start(tmp_path, model)
    try:
        wait_for_records(process, tmp_path / "results.jsonl", 1)
        for starts, victim in ((1, "scheduler"), (2, "detokenizer")):
            wait_for_starts(process, journal, starts)
            next(c for c in descendants(process) if victim in " ".join(c.cmdline())).kill()
        _, messages = process.communicate(timeout=START_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, messages
    assert messages.count("a process of the engine died") == 2
    records = [json.loads(raw) for raw in (tmp_path / "results.jsonl").read_bytes().splitlines()]
    assert sorted(record["custom_id"] for record in records) == sorted(
        ["quick", *(f"long-{i}" for i in range(4))]
    )


def test_a_runner_that_is_killed_while_its_engine_starts_leaves_no_process_and_no_file(
    tmp_path: Path, model: Path
) -> None:
    (tmp_path / "requests.jsonl").write_bytes(completion("a", "x"))
    process = start(tmp_path, model)
    journal = tmp_path / "results.jsonl.journal"
    deadline = time.monotonic() + START_SECONDS
    while len(children := descendants(process)) < 3:  # the worker, and the first of its children
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job = Journal(journal, read_only=True).get("id")
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert leftovers.engine_processes(job) == []
    leftovers.clear(job)
    assert not leftovers.temporary_folder(job).exists()


def test_a_later_job_plans_with_the_lengths_of_earlier_answers_and_answers_the_same(
    tmp_path: Path, model: Path
) -> None:
    from sglang.srt.hardware_backend.portable_cpu.kernel_build import cache_folder

    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "SGLANG_CPU_KERNEL_CACHE": str(cache_folder()),
    }
    asked = [chat(f"r{i}", f"Tell me about the number {i}, please.", max_tokens=24) for i in range(12)]

    def run(name: str, lines: list[bytes]) -> tuple[int, dict[str, Any]]:
        """Requests that were expected to have some length, and the answers' texts."""
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "requests.jsonl").write_bytes(b"".join(lines))
        report = folder / "report.json"
        started = [part for part in command(folder, model) if part != "--no-learned-lengths"]
        done = subprocess.run(
            [*started, "--report", str(report)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            timeout=START_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        records = map(json.loads, (folder / "results.jsonl").read_bytes().splitlines())
        texts = {
            record["custom_id"]: record["response"]["body"]["choices"][0]["message"]["content"]
            for record in records
        }
        return json.loads(report.read_text())["blend"]["expected_outputs"], texts

    nothing, first = run("first", asked[:6])
    learned, all_of_them = run("another", asked)
    assert (nothing, learned) == (0, 12)
    assert first.items() <= all_of_them.items()

"""Requests with equal answers are run once, whatever kills the run, and each line has its record."""

import contextlib
import json
import random
import time
from pathlib import Path

import pytest
from echo_jobs import FAULTS, SECONDS, EchoJob, request

QUESTIONS = 12


def lines(count: int) -> list[bytes]:
    """Greedy requests that repeat each other, some refused; every fifth is one that must be run."""
    made = []
    for i in range(count):
        question = i % QUESTIONS
        prompt = f"refuse {question}" if question == 7 else f"question {question}"
        made.append(request(f"r{i}", prompt, **({"temperature": 0} if i % 5 else {"temperature": 0.7})))
    return made


def runs_needed(count: int) -> int:
    return sum(i % 5 == 0 for i in range(count)) + len({i % QUESTIONS for i in range(count) if i % 5})


def assert_own_answers(job: EchoJob) -> None:
    """Each record answers the question of the line that it names."""
    prompts = {fields["custom_id"]: fields["body"] for fields in map(json.loads, job.input.open())}
    for record in job.records():
        assert record["response"]["body"]["echo"] == prompts[record["custom_id"]]["prompt"]
    for record in job.records(job.errors):
        assert prompts[record["custom_id"]]["prompt"].startswith("refuse")
        assert record["response"]["status_code"] == 400


def test_equal_greedy_requests_are_run_once(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, lines(300))
    report = tmp_path / "report.json"
    code, said = job.run("--report", str(report))
    assert code == 1, said
    assert job.ids() == sorted(f"r{i}" for i in range(300))
    assert job.computed().total() == runs_needed(300)
    assert_own_answers(job)
    numbers = json.loads(report.read_text())
    assert numbers["twins"] == 300 - runs_needed(300)
    refused = sum(i % QUESTIONS == 7 and i % 5 > 0 for i in range(300)) - 1
    assert numbers["twin_tokens"] == (numbers["twins"] - refused) * 12
    assert f"{numbers['twins']} lines with the answer of an equal one" in said


def test_without_dedupe_every_line_is_run(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, lines(60))
    assert job.run("--no-dedupe")[0] == 1
    assert job.computed().total() == 60


@pytest.mark.parametrize("seed", range(10 if FAULTS == "all" else 3))
def test_kill_9_at_random_moments_runs_no_twin(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    job = EchoJob(tmp_path, lines(400))
    flags = ["--echo-seconds", "0.1", "--pool", "10", "--commit-ms", str(chance.choice([0, 5, 50]))]
    for _ in range(4):
        process = job.start(*flags)
        started, wanted = time.monotonic(), len(job.done()) + chance.randrange(100)
        while process.poll() is None and time.monotonic() < started + SECONDS:
            with contextlib.suppress(FileNotFoundError):  # not begun, or finished just now
                if job.partial.read_bytes().count(b"\n") >= wanted:
                    break
            time.sleep(0.001)
        process.kill()
        process.communicate()
        before, done = job.computed(), {f"r{position}" for position in job.done()}
        if process.returncode == 1:
            break
    code, said = job.run(*flags)
    assert code == 1, said
    assert job.ids() == sorted(f"r{i}" for i in range(400))
    assert_own_answers(job)
    assert done.isdisjoint(job.computed() - before), "answered lines were computed again"
    assert len(job.computed()) == runs_needed(400), "a line was run that has a twin before it"


def test_added_and_retried_lines_find_their_twins(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, lines(50))
    assert job.run()[0] == 1
    computed = job.computed()
    with job.input.open("ab") as file:
        file.write(request("more", "question 2", temperature=0.0) + request("bad", "refuse 7", temperature=0))
    code, said = job.run()
    assert (code, job.computed()) == (1, computed)
    assert "2 lines get the record of an equal line" in said
    assert job.run("--retry-failed")[0] == 1
    assert (job.computed() - computed).total() == len(
        {i for i in range(50) if i % QUESTIONS == 7 and i % 5 == 0}
    ) + 1
    assert job.ids() == sorted(["more", "bad", *(f"r{i}" for i in range(50))])
    assert_own_answers(job)
    assert job.run("--restart")[0] == 1
    assert (job.computed() - computed).total() > runs_needed(50)

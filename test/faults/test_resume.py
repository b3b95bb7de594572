"""A job goes on, whatever the last run of it left behind: one record per line, none computed for nothing."""

import gzip
import os
import random
import signal
import stat
import time
from pathlib import Path

import pytest
import zstandard
from echo_jobs import FAULTS, SECONDS, EchoJob, request

from sglang.batch.run.journal import Journal

LINES = 300


def lines(count: int = LINES) -> list[bytes]:
    """Requests, some of which are refused, raise, or cannot be read."""
    made = []
    for i in range(count):
        prompt = "refuse" if i % 50 == 7 else "raise" if i % 50 == 8 else None
        made.append(b"{not json %d\n" % i if i % 50 == 9 else request(f"r{i}", prompt))
    return made


def expected(count: int = LINES) -> list[str]:
    return sorted("None" if i % 50 == 9 else f"r{i}" for i in range(count))


SEEDS = range(20 if FAULTS == "all" else 4)


@pytest.mark.parametrize("seed", SEEDS)
def test_kill_9_at_random_moments_loses_and_doubles_nothing(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    job = EchoJob(tmp_path, lines())
    flags = ["--echo-seconds", "0.05", "--pool", "20", "--commit-ms", str(chance.choice([0, 5, 50]))]
    flags += ["--in-order"] if seed % 2 else []
    for _ in range(5):
        process = job.start(*flags)
        if chance.random() < 0.3:  # anywhere, the start and the end included
            time.sleep(chance.uniform(0, 2.5))
        else:
            job_started = time.monotonic()
            wanted = len(job.done()) + chance.randrange(60)
            while process.poll() is None and time.monotonic() < job_started + SECONDS:
                if job.partial.exists() and job.partial.read_bytes().count(b"\n") >= wanted:
                    break
                time.sleep(0.001)
        process.kill()
        process.communicate()
        done = job.done()
        computed = job.computed()
        if process.returncode == 1:
            break
    code, said = job.run(*flags)
    assert code == 1, said
    assert job.ids() == expected()
    again = job.computed() - computed
    known = {f"r{position}" for position in done}
    assert known.isdisjoint(again), "answered lines were computed again"
    assert job.leftovers() == {"out.jsonl", "out.jsonl.errors.jsonl", "out.jsonl.journal", "out.jsonl.lock"}
    if seed % 2:
        ids = [record["custom_id"] for record in job.records()]
        assert ids == sorted(ids, key=lambda name: int(name[1:]))


def test_a_run_without_errors_leaves_no_error_file_and_the_same_command_does_nothing(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request(str(i)) for i in range(5)])
    assert job.run()[0] == 0
    assert job.leftovers() == {"out.jsonl", "out.jsonl.journal", "out.jsonl.lock"}
    before = job.output.read_bytes()
    code, said = job.run()
    assert (code, job.output.read_bytes()) == (0, before)
    assert "nothing is left to do" in said
    assert "starting the engine" not in said
    assert job.leftovers() == {"out.jsonl", "out.jsonl.journal", "out.jsonl.lock"}


def test_only_the_owner_may_read_what_a_run_writes(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, lines(60))
    job.kill_after_records(5, "--echo-seconds", "0.2", "--commit-ms", "0", "--pool", "3")
    paths = list(tmp_path.rglob("out.jsonl*"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o700}


def test_the_second_of_two_runs_is_refused_and_names_the_first(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request(str(i)) for i in range(20)])
    first = job.start("--echo-seconds", "5")
    while not job.partial.exists():
        time.sleep(0.01)
    code, said = job.run()
    assert code == 2
    assert f"process {first.pid}" in said
    assert first.wait(SECONDS) == 0
    assert max(job.computed().values()) == 1


def test_appended_lines_are_picked_up_by_a_finished_job_too(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("a"), request("b", "refuse")])
    assert job.run()[0] == 1
    with job.input.open("ab") as file:
        file.write(request("c"))
    assert job.run()[0] == 1
    assert job.ids() == ["a", "b", "c"]
    assert job.computed() == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize("change", ["another line", "a line less", "--model-path", "--dtype", "--errors"])
def test_what_changed_is_named_and_refused(change: str, tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("a"), request("b"), request("c")])
    assert job.run()[0] == 0
    before = job.output.read_bytes()
    flags: list[str] = []
    if change == "another line":
        job.input.write_bytes(request("a") + request("B") + request("c"))
        named = "in.jsonl: line 2"
    elif change == "a line less":
        job.input.write_bytes(request("a") + request("b"))
        named = "line 3"
    else:
        flags = [change, "-" if change == "--errors" else "other"]
        named = f"{change}: was"
    code, said = job.run(*flags)
    assert code == 2
    assert named in said
    assert "--restart" in said
    assert job.output.read_bytes() == before
    code, said = job.run("--restart", *flags)
    assert code == 0, said
    assert (tmp_path / "out.jsonl.old").read_bytes() == before


def test_a_finished_job_that_was_killed_as_all_its_errors_were_to_run_again_goes_on(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("a", "refuse")])
    assert job.run()[0] == 1
    journal = Journal(job.journal)
    assert journal.retry_failed(None) == 1
    journal.set(state="running")
    journal.close()
    code, said = job.run(env=os.environ | {"ECHO_FORGIVES": "1"})
    assert code == 0, said
    assert job.ids() == ["a"]


def test_a_restart_sets_aside_what_is_complete_and_what_is_not(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("a")])
    assert job.run()[0] == 0
    before = job.output.read_bytes()
    job.partial.write_bytes(b"{}\n")
    assert job.run("--restart")[0] == 0
    assert (tmp_path / "out.jsonl.old").read_bytes() == before
    assert (tmp_path / "out.jsonl.partial.old").read_bytes() == b"{}\n"


def test_a_line_that_changes_during_the_run_is_not_run(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request(f"r{i}") for i in range(100)])
    process = job.start("--echo-seconds", "1", "--pool", "3", "--commit-ms", "0")
    while not job.done():
        time.sleep(0.02)
    whole = job.input.read_bytes()
    job.input.write_bytes(whole.replace(b"r50", b"R50"))
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 2, said
    assert "line 51 has changed" in said
    job.input.write_bytes(whole)
    assert job.run()[0] == 0
    assert job.ids() == sorted(f"r{i}" for i in range(100))


def test_blank_lines_and_marks_change_nothing(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("a"), request("b")])
    assert job.run()[0] == 0
    job.input.write_bytes(b"\xef\xbb\xbf\n \n" + request("a") + b"\n" + request("b") + request("c"))
    assert job.run()[0] == 0
    assert job.computed() == {"a": 1, "b": 1, "c": 1}


def test_before_anything_is_answered_everything_may_change(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("a")])
    process = job.start("--echo-seconds", "100")
    while not job.partial.exists():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    job.input.write_bytes(request("b"))
    assert job.run("--dtype", "half")[0] == 0
    assert job.ids() == ["b"]


def test_failed_lines_run_again_when_asked_and_by_code(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, lines(60))
    assert job.run()[0] == 1
    forgiving = {**os.environ, "ECHO_FORGIVES": "1"}
    assert job.run("--retry-codes", "nothing", env=forgiving)[0] == 1
    assert job.computed().total() == 58
    code, said = job.run("--retry-codes", "BadRequestError", env=forgiving)
    assert (code, job.computed()["r7"], job.computed()["r8"]) == (1, 2, 1), said
    assert job.ids() == expected(60)
    assert {record["error"]["code"] for record in job.records(job.errors)} == {
        "internal_error",
        "invalid_json_line",
    }
    assert job.run("--retry-failed")[0] == 1
    assert job.computed()["r8"] == 2
    assert job.ids() == expected(60)


def test_errors_have_the_form_of_the_batch_api(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("a", "refuse"), request("b", "raise"), b"{\n", request("d")])
    assert job.run()[0] == 1
    assert [record["custom_id"] for record in job.records()] == ["d"]
    errors = {record["custom_id"]: record for record in job.records(job.errors)}
    assert errors["a"]["error"] is None
    assert errors["a"]["response"]["status_code"] == 400
    assert errors["a"]["response"]["body"]["error"]["message"] == "refused"
    assert errors["b"]["response"] is None
    assert errors["b"]["error"]["code"] == "internal_error"
    assert errors[None]["error"]["code"] == "invalid_json_line"
    assert errors[None]["error"]["line"] == 3


def test_errors_go_where_the_user_says(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, lines(30))
    assert job.run("--errors", str(tmp_path / "bad.jsonl"))[0] == 1
    assert len(job.records(tmp_path / "bad.jsonl")) == 3
    (tmp_path / "other").mkdir()
    other = EchoJob(tmp_path / "other", lines(30))
    assert other.run("--errors", "-", "--in-order")[0] == 1
    assert not other.errors.exists()
    names = [str(record["custom_id"]) for record in other.records()]
    assert names == ["None" if i == 9 else f"r{i}" for i in range(30)]


def test_order_can_be_asked_for_afterwards(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request(f"r{i}") for i in range(40)])
    assert job.run("--echo-seconds", "0.2")[0] == 0
    assert job.run("--in-order")[0] == 0
    assert [record["custom_id"] for record in job.records()] == [f"r{i}" for i in range(40)]
    assert job.computed().total() == 40


def test_an_output_that_was_edited_after_the_end_is_left_alone(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("a")])
    assert job.run()[0] == 0
    job.output.write_bytes(b"edited\n")
    code, said = job.run("--retry-failed")
    assert code == 2
    assert "out.jsonl: has 7 bytes" in said
    assert job.output.read_bytes() == b"edited\n"


@pytest.mark.parametrize("log", ["partial", "errors.jsonl.partial"])
def test_a_log_that_lost_its_end_at_any_byte_is_completed(log: str, tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("a"), request("b", "refuse"), request("c", "refuse"), *lines(40)[10:]])
    job.kill_after_records(4, "--echo-seconds", "1", "--commit-ms", "0", "--pool", "8")
    path = Path(f"{job.output}.{log}")
    raw = path.read_bytes()
    record = len(raw.splitlines(keepends=True)[-1]) if raw else 0
    cuts = range(record + 1) if FAULTS == "all" else [1, record // 2, record]
    saved = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    for cut in cuts:
        for p in [p for p in tmp_path.iterdir() if p.is_file() and p not in saved]:
            p.unlink()
        for p, content in saved.items():
            p.write_bytes(content)
        path.write_bytes(raw[: len(raw) - cut])
        code, said = job.run()
        assert code in (0, 1), said
        assert job.ids() == sorted(["a", "b", "c", *(f"r{i}" for i in range(10, 40))])


@pytest.mark.parametrize("form", ["gzip", "zstd", "UTF-16", "standard input once", "standard input again"])
def test_input_that_cannot_be_read_in_place_is_resumed(form: str, tmp_path: Path) -> None:
    content = b"".join(lines(120))
    job = EchoJob(tmp_path, [])
    flags = ["--echo-seconds", "0.2", "--pool", "10", "--commit-ms", "0"]
    inputs: tuple[str, ...] = ()
    packed = {
        "gzip": gzip.compress(content),
        "zstd": zstandard.compress(content),
        "UTF-16": content.decode().encode("utf-16"),
    }
    if form in packed:
        job.input.write_bytes(packed[form])
    else:
        inputs = ("-",)
        (tmp_path / "stdin").write_bytes(content)
    first = job.start(*flags, inputs=inputs, **({"stdin": (tmp_path / "stdin").open("rb")} if inputs else {}))
    while len(job.done()) < 20:
        time.sleep(0.02)
    first.kill()
    first.communicate()
    done = {f"r{position}" for position in job.done()}
    before = job.computed()
    again = {"stdin": content} if form == "standard input again" else {}
    code, said = job.run(inputs=inputs, **again)
    assert code == 1, said
    assert job.ids() == expected(120)
    assert done.isdisjoint(job.computed() - before)


def test_another_standard_input_is_refused(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [])
    assert job.run(inputs=("-",), stdin=request("a") + request("b"))[0] == 0
    code, said = job.run(inputs=("-",), stdin=request("a") + request("B"))
    assert code == 2
    assert "standard input: line 2" in said


def test_several_inputs_are_one_job_and_error_records_name_the_file(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("a"), request("b")])
    (tmp_path / "more.jsonl").write_bytes(request("a") + b"oops\n" + request("c"))
    code, said = job.run(inputs=(str(tmp_path),))
    assert code == 1, said
    assert job.ids() == ["None", "a", "a", "b", "c"]
    errors = {record["error"]["code"]: record["error"] for record in job.records(job.errors)}
    assert errors["duplicate_custom_id"]["file"] == str(tmp_path / "more.jsonl")
    assert errors["invalid_json_line"]["line"] == 2
    assert job.run(inputs=(str(tmp_path),))[0] == 1, "outputs are no inputs of the next run"
    assert job.computed().total() == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_what_runs_end_and_the_same_command_continues(number: int, tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request(f"r{i}") for i in range(200)])
    process = job.start("--echo-seconds", "0.5", "--pool", "10", "--commit-ms", "0")
    while len(job.done()) < 10:
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert job.computed().total() == len(job.done()), "what ran was allowed to end"
    assert job.run()[0] == 0
    assert set(job.computed().values()) == {1}


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("quick"), *(request(f"r{i}") for i in range(9))])
    process = job.start("--echo-seconds", "600")
    while not job.partial.exists():
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said


def test_without_a_journal_nothing_but_the_output_is_left(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("a")])
    assert job.run("--no-keep-journal")[0] == 0
    assert job.leftovers() == {"out.jsonl", "out.jsonl.lock"}


def test_a_damaged_journal_is_refused_with_the_remedy(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("a")])
    assert job.run()[0] == 0
    job.journal.write_bytes(b"x" * 8192)
    code, said = job.run()
    assert code == 2
    assert "--restart" in said
    assert job.run("--restart")[0] == 0

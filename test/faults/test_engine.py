"""An engine may die, hang, or be killed: the run goes on, and nothing of the engine is left behind."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from echo_jobs import FAULTS, SECONDS, EchoJob, request

from sglang.batch.records import BatchRequest
from sglang.batch.run.engine.leftovers import engine_processes, temporary_folder
from sglang.batch.run.engine.supervisor import Supervisor
from sglang.batch.run.journal import Journal

QUICK = ("--echo-worker", "--pool", "20", "--commit-ms", "5")


def job_id(job: EchoJob) -> str:
    journal = Journal(job.journal, read_only=True)
    try:
        return str(journal.get("id"))
    finally:
        journal.close()


def wait_for_worker(job: EchoJob, process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The engine's processes, worker and child, as soon as both are there."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        if job.journal.exists():
            try:
                found = [p for p in engine_processes(job_id(job)) if p.pid != process.pid]
            except Exception:
                continue
            if len(found) == 2:
                return found
        time.sleep(0.01)
    raise AssertionError("no worker came up")


def assert_nothing_left(job: EchoJob) -> None:
    assert engine_processes(job_id(job)) == []
    assert not temporary_folder(job_id(job)).exists()


@pytest.mark.parametrize("deadly", [{13}, {0, 1, 57}])
def test_lines_that_kill_the_engine_get_an_error_record_and_all_others_an_answer(
    deadly: set[int], tmp_path: Path
) -> None:
    lines = [request(f"r{i}", "kill" if i in deadly else None) for i in range(60)]
    job = EchoJob(tmp_path, lines)
    code, said = job.run(*QUICK, "--echo-seconds", "0.05")
    assert code == 1, said
    assert job.ids() == sorted(f"r{i}" for i in range(60))
    errors = {record["custom_id"]: record["error"] for record in job.records(job.errors)}
    assert set(errors) == {f"r{i}" for i in deadly}
    assert {error["code"] for error in errors.values()} == {"engine_crashed"}
    assert "signal 9" in errors[f"r{min(deadly)}"]["message"]
    assert_nothing_left(job)


def test_a_line_that_hangs_the_engine_is_found_by_the_stall_timeout(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request(f"r{i}", "hang" if i == 3 else None) for i in range(8)])
    code, said = job.run(*QUICK, "--stall-timeout", "1")
    assert code == 1, said
    (error,) = job.records(job.errors)
    assert (error["custom_id"], error["error"]["code"]) == ("r3", "engine_crashed")
    assert "got nowhere for 1 s" in error["error"]["message"]
    assert len(job.records()) == 7
    assert_nothing_left(job)


def test_a_stopped_engine_counts_as_dead(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request(f"r{i}") for i in range(30)])
    process = job.start(*QUICK, "--echo-seconds", "0.5", "--stall-timeout", "2", "--pool", "5")
    engine = wait_for_worker(job, process)
    while not job.done():
        time.sleep(0.02)
    for stopped in engine:
        stopped.suspend()
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    assert "got nowhere" in said
    assert job.ids() == sorted(f"r{i}" for i in range(30))
    assert_nothing_left(job)


@pytest.mark.parametrize("seed", range(10 if FAULTS == "all" else 2))
def test_an_engine_that_is_killed_at_random_moments_costs_no_line(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    job = EchoJob(tmp_path, [request(f"r{i}") for i in range(200)])
    process = job.start(*QUICK, "--echo-seconds", "0.1", "--engine-restarts", "20")
    kills = 0
    while process.poll() is None and kills < 5:
        try:
            victims = wait_for_worker(job, process)
        except AssertionError:
            break
        time.sleep(chance.uniform(0, 0.5))
        worker = min(victims, key=lambda p: p.pid)
        try:
            worker.kill()
        except psutil.NoSuchProcess:
            break
        kills += 1
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    assert kills > 0
    assert job.ids() == sorted(f"r{i}" for i in range(200))
    assert job.computed().total() <= 200 + kills * 20, "only what was in flight is computed again"
    assert_nothing_left(job)


def test_an_engine_that_never_starts_ends_the_run_which_the_same_command_continues(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("a")])
    code, said = job.run(*QUICK, "--echo-log", "/nowhere")
    assert (code, "did not start: no log" in said) == (3, True), said
    assert "again" not in said, "a first start that fails will fail again"
    assert_nothing_left(job)
    assert job.run(*QUICK)[0] == 0


def test_a_start_that_hangs_is_given_up(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("a")])
    code, said = job.run(*QUICK, "--echo-log", "/forever", "--start-timeout", "1")
    assert (code, "did not start within 1 s; --start-timeout" in said) == (3, True), said
    assert_nothing_left(job)
    assert job.run(*QUICK)[0] == 0


def test_an_engine_that_dies_of_everything_is_given_up_and_the_same_command_continues(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request(f"r{i}", "kill") for i in range(3)])
    code, said = job.run(*QUICK, "--engine-restarts", "0")
    assert code == 3, said
    assert "ended with signal 9; 0 of 3 lines are done; the same command continues" in said
    assert_nothing_left(job)
    code, said = job.run(*QUICK)
    assert code == 1, said
    assert {record["error"]["code"] for record in job.records(job.errors)} == {"engine_crashed"}
    assert job.run(*QUICK, "--retry-failed")[0] == 1


@pytest.mark.parametrize("moment", ["while it starts", "while it runs"])
def test_a_runner_that_is_killed_takes_its_engine_along(moment: str, tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request(f"r{i}") for i in range(50)])
    process = job.start(*QUICK, "--echo-seconds", "0.5", "--pool", "5")
    if moment == "while it starts":
        while not job.journal.exists():
            time.sleep(0.01)
        time.sleep(0.3)
    else:
        wait_for_worker(job, process)
    process.kill()
    process.communicate()
    ours = engine_processes(job_id(job))
    _, alive = psutil.wait_procs(ours, timeout=20)
    assert alive == []
    code, said = job.run(*QUICK)
    assert code == 0, said
    assert job.ids() == sorted(f"r{i}" for i in range(50))
    assert_nothing_left(job)


def test_runner_and_worker_killed_at_once_leave_nothing_that_the_next_run_does_not_clear(
    tmp_path: Path,
) -> None:
    job = EchoJob(tmp_path, [request(f"r{i}") for i in range(50)])
    process = job.start(*QUICK, "--echo-seconds", "0.5", "--pool", "5")
    victims = wait_for_worker(job, process)
    worker = min(victims, key=lambda p: p.pid)
    runner = psutil.Process(process.pid)
    runner.suspend()
    while runner.status() != psutil.STATUS_STOPPED:  # it might still hear of the worker's death
        time.sleep(0.01)
    worker.kill()
    process.kill()
    process.wait()  # the worker's child is alive, and has the pipe that the run has spoken into
    killed = job_id(job)
    assert engine_processes(killed) != []
    assert temporary_folder(killed).exists()
    assert job.run(*QUICK)[0] == 0
    assert engine_processes(killed) == []
    assert_nothing_left(job)


def test_signals_of_a_service_manager_to_all_processes_let_what_runs_end(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request(f"r{i}") for i in range(100)])
    process = job.start(*QUICK, "--echo-seconds", "0.5", "--pool", "10", "--commit-ms", "0")
    victims = wait_for_worker(job, process)
    while len(job.done()) < 5:
        time.sleep(0.02)
    worker = min(victims, key=lambda p: p.pid)
    os.kill(worker.pid, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "engine" not in said.partition("terminated")[2], said
    assert job.computed().total() == len(job.done()), "what ran was allowed to end"
    assert_nothing_left(job)


def test_what_a_handler_raises_is_said_as_it_was_raised(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, [request("a"), request("b", "raise")])
    code, said = job.run(*QUICK)
    assert code == 1, said
    (error,) = job.records(job.errors)
    assert (error["error"]["code"], error["error"]["message"]) == (
        "internal_error",
        "RuntimeError: cannot run this",
    )


def test_a_request_that_nobody_waits_for_is_dropped_by_the_engine(tmp_path: Path) -> None:
    worker = [sys.executable, str(Path(__file__).with_name("echo_worker.py"))]
    endless = BatchRequest(1, "a", "/v1/completions", {"prompt": "x"})

    async def running(engine: Supervisor, count: int) -> None:
        assert engine._life is not None
        deadline = time.monotonic() + SECONDS
        while (await engine._life.call("progress"))[0] != count:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    async def test() -> None:
        flags = [str(tmp_path / "echo.log"), "1e9"]
        engine = Supervisor(worker, flags, job=f"test{os.getpid()}", start=SECONDS, stall=SECONDS)
        await engine.start()
        try:
            for work in (engine.answer(endless, "one"), engine.stream(endless, "two", print)):
                task = asyncio.ensure_future(work)
                await running(engine, 1)
                task.cancel()
                await running(engine, 0)
        finally:
            await engine.stop()

    asyncio.run(test())

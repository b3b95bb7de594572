"""A disk that is full pauses a run; nothing is lost, whether there is room again or not."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import small_disk
from echo_jobs import SECONDS, EchoJob, request

LINES = 300
PROMPT = "x" * 5000
"""So long that the answers do not fit into a megabyte."""


@pytest.fixture(name="small_disk")
def a_disk_of_a_megabyte(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", "1m") as folder:
        yield folder


def make_room(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)


@pytest.fixture
def job(tmp_path: Path, small_disk: Path) -> EchoJob:
    lines = [request(f"r{i}", PROMPT) for i in range(LINES)]
    return EchoJob(tmp_path, lines, outputs=small_disk)


def start_until_full(job: EchoJob, *flags: str) -> "subprocess.Popen[str]":
    process = job.start("--pool", "50", "--commit-ms", "20", "--echo-seconds", "0.2", *flags)
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), True)
    for said in process.stderr:
        if "is full" in said:
            return process
    raise AssertionError(f"the disk was never full: exit code {process.wait(SECONDS)}")


def assert_complete(job: EchoJob) -> None:
    assert job.ids() == sorted(f"r{i}" for i in range(LINES))


def test_a_full_disk_pauses_the_run_until_there_is_room(job: EchoJob, small_disk: Path) -> None:
    process = start_until_full(job)
    time.sleep(1)
    computed = job.computed().total()
    assert computed < LINES, "no new requests while the disk is full"
    assert len(job.done()) >= computed - 50
    make_room(small_disk)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    assert "is full" not in said, "one message is enough"
    assert "takes records again" in said
    assert_complete(job)
    assert set(job.computed().values()) == {1}


def test_a_disk_that_stays_full_ends_the_run_which_continues_later(job: EchoJob, small_disk: Path) -> None:
    process = start_until_full(job, "--disk-patience", "2")
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 4, said
    assert "stayed so" in said
    assert "Traceback" not in said
    done = {f"r{position}" for position in job.done()}
    before = job.computed()
    code, _ = job.run("--disk-patience", "0")
    assert code == 4, "the same command, the same disk"
    make_room(small_disk)
    code, said = job.run()
    assert code == 0, said
    assert_complete(job)
    assert done
    assert done.isdisjoint(job.computed() - before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_waits_for_room_can_be_ended(number: int, job: EchoJob, small_disk: Path) -> None:
    process = start_until_full(job, "--grace", "1")
    process.send_signal(number)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), said
    make_room(small_disk)
    assert job.run()[0] == 0
    assert_complete(job)

"""Workers answer line by line, report errors, and leave nothing behind."""

import sys
import time

import pytest
from benchmark.offline.protocol import Worker, WorkerFailed

SCRIPT = """
import os, subprocess, sys, time
from benchmark.offline.protocol import serve

def handle(message):
    print("noise on stdout")
    if message.get("die"):
        print("last words", file=sys.stderr)
        os._exit(3)
    return {"twice": 2 * message["number"]}

def start(options):
    if options.get("broken"):
        raise ValueError("no such model")
    child = subprocess.Popen(["sleep", "600"])
    return handle, {"child": child.pid, "greeting": options["greeting"]}

serve(start)
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def begin(options: str) -> Worker:
        started.append(Worker([sys.executable, "-c", SCRIPT, options], tmp_path / "log", {}))
        return started[-1]

    yield begin
    for worker in started:
        worker.stop()


def test_messages_are_answered_in_order_whatever_is_printed(start):
    worker = start('{"greeting": "hello"}')
    assert worker.ready()["greeting"] == "hello"
    assert [worker.call({"number": n})["twice"] for n in (1, 2)] == [2, 4]


def test_an_error_is_reported_and_the_worker_goes_on(start):
    worker = start('{"greeting": ""}')
    worker.ready()
    with pytest.raises(WorkerFailed, match="KeyError: 'number'"):
        worker.call({})
    assert worker.call({"number": 5})["twice"] == 10


def test_a_failed_start_is_reported(start):
    with pytest.raises(WorkerFailed, match="ValueError: no such model"):
        start('{"broken": true}').ready()


def test_a_dead_worker_is_reported_with_its_last_words(start):
    worker = start('{"greeting": ""}')
    worker.ready()
    with pytest.raises(WorkerFailed, match=r"(?s)exited with 3.*last words"):
        worker.call({"die": True})


def test_stopping_ends_the_whole_process_group(start):
    worker = start('{"greeting": ""}')
    child = worker.ready()["child"]
    worker.stop()
    deadline = time.monotonic() + 30
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

"""Whatever happens to replicas, nodes and the driver, every custom_id has one record."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from echo_jobs import EchoJob, request

from sglang.batch.run.engine.leftovers import JOB_VARIABLE
from sglang.batch.run.journal import Journal, Log
from sglang.batch.run.schema import JournalUnusable

LINES = 120

SECONDS = 400
"""At the latest; Ray's processes take their time where others compute."""

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}

SOON = {
    "sglang.batch.run.engine.restarts.FIRST_WAIT": 0.1,
    "sglang.batch.run.ray_replicas.replica.SILENT_SECONDS": 1.5,
    "sglang.batch.run.remote.dispatcher.FIRST_WAIT": 0.1,
    "sglang.batch.run.remote.dispatcher.LONGEST_PROBE": 0.5,
}
"""What is waited for less long than outside of tests."""

ENVIRONMENT = {**os.environ, "ECHO_SETTINGS": json.dumps(SOON)}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster with one node that has room for one replica; tests add others."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    yield made
    made.shutdown()


@pytest.fixture
def two_nodes(cluster: Any) -> Iterator[Any]:
    """The cluster with room for two replicas; gives the second node."""
    node = cluster.add_node(**NODE)
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[EchoJob]:
    """A job that does not end before `go`: one line in six waits for that. Drivers are ended at last."""
    yield EchoJob(tmp_path, [request(f"r{i}", "wait" if i % 6 == 0 else None) for i in range(LINES)])
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("echo_run" in part for part in child.cmdline()):
                child.kill()


def go(job: EchoJob) -> None:
    Path(f"{job.echo_log}.go").touch()


def expected() -> list[str]:
    return sorted(f"r{i}" for i in range(LINES))


def flags(cluster: Any, replicas: str) -> list[str]:
    return [
        *("--ray", "--address", cluster.address, "--replicas", replicas),
        *("--echo-seconds", "0.2", "--commit-ms", "0", "--pool", "60"),
    ]


def engines() -> dict[str, psutil.Process]:
    """First processes of engines in actors, by replica (`r1`); the parent of each is the actor."""
    found = {}
    for process in psutil.process_iter():
        replica = environment(process).get(JOB_VARIABLE, "").rpartition("-")[2]
        with contextlib.suppress(psutil.Error):
            if replica.startswith("r") and any("echo_worker" in part for part in process.cmdline()):
                found[replica] = process
    return found


def environment(process: psutil.Process) -> dict[str, str]:
    """The environment of a process, empty if it has ended."""
    with contextlib.suppress(psutil.Error):
        return dict(process.environ())
    return {}


def until(there: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := there()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


class Said:
    """What a process says, as it says it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.text = ""
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.text += line


def records(job: EchoJob) -> int:
    with contextlib.suppress(FileNotFoundError):
        return job.partial.read_bytes().count(b"\n")
    return 0


def committed(job: EchoJob) -> int:
    """Answers that the journal of a job has, which may be running."""
    with (
        contextlib.suppress(JournalUnusable, sqlite3.OperationalError),  # not there yet
        contextlib.closing(Journal(job.journal, read_only=True)) as journal,
    ):
        return len(list(journal.spans(Log.ANSWERS, by_position=False)))
    return 0


def test_an_actor_that_is_killed_and_one_that_hangs_lose_and_double_nothing(
    cluster: Any, two_nodes: Any, job: EchoJob
) -> None:
    process = job.start(*flags(cluster, "2"), env=ENVIRONMENT)
    until(lambda: records(job) >= 10)
    found = until(lambda: len(now := engines()) == 2 and now)
    os.kill(found["r1"].ppid(), signal.SIGKILL)
    hung = found["r2"].parent()
    until(lambda: engines().get("r1") not in (None, found["r1"]))  # another actor has its engine
    hung.suspend()
    until(lambda: engines().get("r2") not in (None, found["r2"]))
    go(job)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    assert job.ids() == expected()
    assert "lost a server, which is tried again: replica 1" in said
    assert "lost a server, which is tried again: replica 2: nothing was heard" in said
    until(lambda: not engines() and not hung.is_running())


def test_a_replica_leaves_with_its_node_and_joins_again_when_there_is_room(
    cluster: Any, job: EchoJob
) -> None:
    node = cluster.add_node(**NODE)
    process = job.start(*flags(cluster, "2"), env=ENVIRONMENT)
    said = Said(process)
    until(lambda: records(job) >= 10 and len(engines()) == 2)
    cluster.remove_node(node, allow_graceful=False)
    until(lambda: "lost a server, which is tried again: replica" in said.text)
    node = cluster.add_node(**NODE)
    until(lambda: "a server is back: replica" in said.text)
    go(job)
    assert process.wait(SECONDS) == 0, said.text
    assert job.ids() == expected()
    cluster.remove_node(node)


def test_the_driver_is_killed_on_a_cluster_and_with_a_ray_of_its_own_and_the_same_command_goes_on(
    cluster: Any, job: EchoJob
) -> None:
    first = job.start(*flags(cluster, "1"))
    until(lambda: committed(job) >= 20)
    first.kill()
    first.communicate()
    until(lambda: not engines())  # the actors end with their driver
    done, computed = job.done(), job.computed()
    assert done
    own = job.start("--ray", "--cpus-per-replica", "3", "--commit-ms", "0")
    until(lambda: len(job.computed() - computed) >= 5)
    assert environment(engines()["r1"])["OMP_NUM_THREADS"] == "3"
    started = psutil.Process(own.pid).children(recursive=True)
    rays = [child for child in started if "raylet" in child.name()]
    of_engine = [child for child in started if JOB_VARIABLE in environment(child)]
    assert rays
    assert len(of_engine) == 2
    own.kill()
    own.communicate()
    until(lambda: not engines() and not any(ray.is_running() for ray in rays))
    go(job)
    last = job.start(*flags(cluster, "1"), env=ENVIRONMENT)
    _, said = last.communicate(timeout=SECONDS)
    assert last.returncode == 0, said
    assert job.ids() == expected()
    again = job.computed() - computed
    assert {f"r{position}" for position in done}.isdisjoint(again), "answered lines were computed again"
    # What an engine had started may outlive a Ray that is killed; the next start of that replica ends it.
    until(lambda: not any(child.is_running() for child in of_engine))
    # Agents of a Ray that is killed notice after a minute.
    for child in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def test_ray_data_reads_and_writes_through_an_engine(cluster: Any, two_nodes: Any, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "faults" / "echo_data.py"
    command = [
        sys.executable,
        str(script),
        cluster.address,
        str(tmp_path / "log"),
        "40",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert {row["id"]: row["response_text"] for row in rows} == {i: f"echo row {i}" for i in range(40)}
    assert len(rows) == 40

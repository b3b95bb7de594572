"""Killed at any moment, the service goes on where it was: no line is lost, and none has two records."""

import random
import time
from pathlib import Path

import pytest
from echo_jobs import FAULTS, request
from openai import OpenAI
from services import (
    LAST,
    EchoService,
    assert_whole,
    counts,
    create,
    lines,
    wait_for,
    wait_until,
    write_keys,
)

FLAGS = ("--echo-seconds", "0.2", "--pool", "20")


def test_kill_9_at_random_moments_of_5_jobs_of_2_keys_loses_and_doubles_nothing(
    service: EchoService, tmp_path: Path
) -> None:
    flags = (*FLAGS, "--api-keys", str(write_keys(tmp_path, "odd", "even")))
    chance = random.Random(7)
    service.start(*flags)
    jobs: dict[str, tuple[str, list[str]]] = {}
    seen: dict[str, tuple[int, int, int]] = {}
    cancelled = ""
    for moment in range(20 if FAULTS == "all" else 6):
        clients = {key: service.client(key) for key in ("odd", "even")}
        for id, (key, _) in jobs.items():
            seen[id] = _grown(clients[key], id, seen.get(id, (0, 0, 0)))
        if len(jobs) < 5:
            key, name = ("even", "odd")[moment % 2], "abcde"[moment]
            batch = create(clients[key], lines(60, name=name) + request(f"{name}bad", "refuse"))
            jobs[batch.id] = key, [*(f"{name}{i}" for i in range(60)), f"{name}bad"]
        elif not cancelled:
            cancelled = next(id for id in jobs if clients[jobs[id][0]].batches.retrieve(id).status != LAST[0])
            clients[jobs[cancelled][0]].batches.cancel(cancelled)
        time.sleep(chance.uniform(0, 0.3))
        service.kill()
        service.start(*flags)
    assert "waits" not in service.said.read_text(), "a batch cannot go on"
    for id, (key, expected) in jobs.items():
        client = service.client(key)
        batch = wait_for(client, id)
        assert batch.status == ("cancelled" if id == cancelled else "completed")
        assert_whole(client, batch, expected)
    for key, count in (("even", 3), ("odd", 2)):
        client = service.client(key)
        mine = list(client.batches.list())
        assert {batch.id for batch in mine} == {id for id, (whose, _) in jobs.items() if whose == key}
        named = {file for batch in mine for file in (batch.output_file_id, batch.error_file_id) if file}
        assert {file.id for file in client.files.list(purpose="batch_output")} == named
        assert len(list(client.files.list(purpose="batch"))) == count


def _grown(client: OpenAI, id: str, before: tuple[int, int, int]) -> tuple[int, int, int]:
    now = counts(client.batches.retrieve(id))
    assert all(one <= other for one, other in zip(before, now, strict=True)), (before, now)
    return now


@pytest.mark.parametrize("moment", ["at once", "when it ends", "while it is cancelled"])
def test_kill_9_around_a_change_of_state(moment: str, service: EchoService) -> None:
    client = service.start(*FLAGS)
    made = create(client, lines(40))
    if moment == "when it ends":
        wait_until(client, made.id, lambda batch: counts(batch)[1] >= 39)
    elif moment == "while it is cancelled":
        wait_until(client, made.id, lambda batch: counts(batch)[1] >= 5)
        client.batches.cancel(made.id)
    service.kill()
    client = service.start(*FLAGS)
    batch = wait_for(client, made.id)
    assert batch.status == ("cancelled" if moment == "while it is cancelled" else "completed")
    assert_whole(client, batch, [f"r{i}" for i in range(40)])
    assert len(list(client.files.list())) == 1 + sum(
        file is not None for file in (batch.output_file_id, batch.error_file_id)
    )


def test_a_batch_that_has_ended_is_as_it_was_after_a_restart(service: EchoService) -> None:
    client = service.start()
    batch = wait_for(client, create(client, lines(5)).id)
    service.kill()
    client = service.start()
    assert client.batches.retrieve(batch.id) == batch
    assert_whole(client, batch, [f"r{i}" for i in range(5)])


def test_sigterm_stops_the_service_and_answers_are_kept(service: EchoService) -> None:
    client = service.start("--echo-seconds", "0.5", "--pool", "5")
    made = create(client, lines(60))
    wait_until(client, made.id, lambda batch: counts(batch)[1] >= 5)
    assert service.terminate() == 0
    computed = service.computed()
    assert 5 <= computed.total() < 60
    client = service.start()
    assert_whole(client, wait_for(client, made.id), [f"r{i}" for i in range(60)])
    assert service.computed().total() == 60, "an answer was computed twice"


def test_a_batch_waits_for_its_own_model_and_can_be_cancelled_without(service: EchoService) -> None:
    client = service.start("--echo-seconds", "0.5", "--pool", "5")
    made = create(client, lines(60))
    before = counts(wait_until(client, made.id, lambda batch: counts(batch)[1] >= 5))
    service.terminate()
    client = service.start("--echo-model", "other")
    batch = client.batches.retrieve(made.id)
    assert batch.status == "in_progress"
    assert counts(batch)[1] >= before[1]
    other = wait_for(client, create(client, lines(3)).id)
    assert other.status == "completed"
    assert "--model-path: was echo, is other" in service.said.read_text()
    client.batches.cancel(made.id)
    batch = wait_for(client, made.id)
    assert (batch.status, batch.error_file_id is None) == ("cancelled", False)
    assert_whole(client, batch, [f"r{i}" for i in range(60)])


def test_an_expired_batch_expires_when_the_service_comes_back(service: EchoService) -> None:
    client = service.start("--echo-seconds", "0.5", "--pool", "2")
    made = create(client, lines(50), completion_window="3s")
    wait_until(client, made.id, lambda batch: counts(batch)[1] >= 1)
    service.kill()
    time.sleep(max(0, made.created_at + 4 - time.time()))
    client = service.start()
    batch = wait_for(client, made.id)
    assert batch.status == "expired"
    assert counts(batch)[1] >= 1
    assert_whole(client, batch, [f"r{i}" for i in range(50)])

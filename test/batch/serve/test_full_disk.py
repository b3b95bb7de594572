"""A disk that is full pauses batches, refuses uploads, and does not keep a batch from ending."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from disks import small_disk
from echo_jobs import SECONDS
from openai import InternalServerError
from services import EchoService, assert_whole, counts, create, lines, wait_for, wait_until

from sglang.batch.serve.reserve import Reserve

LINES = 400
PROMPT = "x" * 5000
LEFT = 300 << 10
"""Bytes that are left of the disk when batches begin; their answers need more."""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[EchoService]:
    with small_disk(tmp_path / "disk", "64m") as folder:
        made = EchoService(folder)
        yield made
        made.kill()


def fill(service: EchoService, left: int) -> Path:
    """Leave so many bytes of the service's disk."""
    filler = service.store.parent / "filler"
    with filler.open("wb") as file:
        while True:
            space = os.statvfs(filler)
            with suppress(OSError):  # the service has written meanwhile
                os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - left)
                return filler


def say(service: EchoService, text: str) -> None:
    deadline = time.monotonic() + SECONDS
    while text not in service.said.read_text():
        assert time.monotonic() < deadline, service.said.read_text()
        time.sleep(0.05)


def test_a_batch_can_be_cancelled_on_a_disk_that_stays_full(service: EchoService) -> None:
    flags = ("--pool", "40", "--echo-seconds", "0.2")
    client = service.start(*flags)
    first = create(client, lines(LINES, PROMPT, name="a"))
    second = create(client, lines(LINES, PROMPT, name="b"))
    filler = fill(service, LEFT)
    for batch in (first, second):
        say(service, f"{batch.id}: {service.store / 'batches' / batch.id} is full")
    with pytest.raises(InternalServerError) as refused:
        create(client, lines(LINES, PROMPT, name="c"))
    assert refused.value.status_code == 507

    client.batches.cancel(first.id)
    ended = wait_for(client, first.id)
    assert ended.status == "cancelled"
    assert_whole(client, ended, [f"a{i}" for i in range(LINES)])
    assert ended.request_counts is not None
    assert 0 < ended.request_counts.completed < LINES

    time.sleep(3)
    waiting = client.batches.retrieve(second.id)
    assert (waiting.status, counts(waiting)[0]) == ("in_progress", LINES)
    assert counts(waiting)[1] < LINES
    with pytest.raises(InternalServerError):
        create(client, lines(LINES, PROMPT, name="d"))

    service.kill()
    client = service.start(*flags)
    assert client.batches.retrieve(second.id).status == "in_progress"
    filler.unlink()
    ended = wait_for(client, second.id)
    assert ended.status == "completed"
    assert_whole(client, ended, [f"b{i}" for i in range(LINES)])
    assert (service.store / "reserve").exists()
    service.terminate()
    assert not (service.store / "reserve").exists()


def test_a_batch_that_no_line_was_run_of_ends_on_a_full_disk_too(service: EchoService) -> None:
    client = service.start("--pool", "1", "--echo-seconds", "1000")
    runs = create(client, lines(1, name="runs"))
    wait_until(client, runs.id, lambda batch: batch.status == "in_progress")
    batch = create(client, lines(2000, "hm"))
    fill(service, 4 << 10)
    client.batches.cancel(batch.id)
    ended = wait_for(client, batch.id)
    assert (ended.status, counts(ended)) == ("cancelled", (2000, 0, 2000))


def test_what_is_given_is_kept_for_batches_that_end_until_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64m") as folder:
        reserve = Reserve(folder, 50_000)
        reserve.hold()
        size = (folder / "reserve").stat().st_size
        assert size == (64 << 20) // 16
        filler = (folder / "filler").open("wb")
        os.posix_fallocate(filler.fileno(), 0, (64 << 20) - size - (1 << 20))
        reserve.check()
        reserve.give()
        assert not (folder / "reserve").exists()
        reserve.check()
        os.posix_fallocate(filler.fileno(), 0, (64 << 20) - size // 2)
        with pytest.raises(OSError, match="kept") as error:
            reserve.check()
        assert error.value.errno == errno.ENOSPC
        reserve.hold()
        assert not (folder / "reserve").exists()
        filler.truncate(0)
        filler.close()
        reserve.hold()
        assert (folder / "reserve").exists()
        reserve.give()
        assert (folder / "reserve").exists(), "there is room without it"

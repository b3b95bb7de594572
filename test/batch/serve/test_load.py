"""Many clients at once meet no error, and what is uploaded is never in memory as a whole."""

import asyncio

import pytest
from benchmark.service_load import jobs_run, large_uploads, service

SIZE = 60_000_000
"""Bytes of an upload; the service's memory grows by a third of that at most."""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_clients_that_poll_and_upload_while_jobs_run_meet_no_error() -> None:
    with service() as running:
        figures = asyncio.run(jobs_run(running, jobs=4, count=100, clients=20))
    assert set(figures["statuses"]) == {"200"}
    assert figures["polls"] >= 20


def test_large_and_broken_uploads_are_not_in_memory_as_a_whole() -> None:
    with service() as running:
        figures = asyncio.run(large_uploads(running, SIZE, short=SIZE // 20))
    assert figures["broken lines"]["batch"] == "failed: invalid_json_line"
    assert figures["form cut off"]["status"] == 400
    assert figures["a byte too many"]["status"] == 413
    assert figures["an id twice"]["batch"] == "failed: duplicate_custom_id"
    assert figures["an id twice"]["peak_mb"] - figures["before_mb"] < SIZE / 3e6, figures

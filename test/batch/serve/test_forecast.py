"""What is foretold of batches: by what is queued, by the engine's speed, by what their files hold."""

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import httpx
import pytest
from echo_jobs import request
from hypothesis import given
from hypothesis import strategies as st
from services import EchoService, create, lines, wait_for, wait_until
from test_admission import batches

from sglang.batch.records import BatchRequest
from sglang.batch.run.lengths import Lengths
from sglang.batch.serve.admission import BatchWork, forecast_ends
from sglang.batch.serve.estimate import estimate


def work(seconds: float, *, key: str = "a", deadline: float = 1e9) -> BatchWork:
    return BatchWork(key, 4.0, deadline, deadline, seconds)


@given(st.lists(batches, max_size=6), st.floats(0.0, 100.0))
def test_no_batch_ends_after_all_work_is_done_nor_before_its_own(works: list[BatchWork], now: float) -> None:
    ends = forecast_ends(works, now)
    total = sum(one.work for one in works)
    for end, one in zip(ends, works, strict=True):
        assert now + one.work * (1 - 1e-6) <= end <= now + total * (1 + 1e-6) + 1e-6
    assert math.isclose(max(ends, default=now), now + total, rel_tol=0.02, abs_tol=1e-6)


def test_batches_that_are_blended_end_together() -> None:
    assert forecast_ends([work(60.0), work(50.0), work(0.0)], 5.0) == pytest.approx([115.0, 115.0, 5.0])


def test_one_that_is_hurried_ends_in_its_window() -> None:
    ends = forecast_ends([work(1000.0), work(60.0, deadline=300.0)], 0.0)
    assert ends[1] <= 301.0
    assert ends[0] == pytest.approx(1060.0)


def test_pieces_of_a_file_stand_for_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    count = 30_000
    path.write_bytes(
        b"".join(request(f"r{i}", "word " * (i % 60), max_tokens=i % 100 + 1) for i in range(count))
    )
    found = estimate(path, Lengths("m"))
    assert found.lines == pytest.approx(count, rel=0.05)
    assert found.line_bytes == pytest.approx(path.stat().st_size / count, rel=0.05)
    assert found.output == pytest.approx(50.5, rel=0.1)
    assert found.learned == 0.0


def test_earlier_answers_tell_how_long_the_next_ones_are(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines(50, "say it", max_tokens=900))
    body = json.loads(path.read_bytes().splitlines()[0])["body"]
    lengths = Lengths("m")
    lengths.learn((BatchRequest(i, f"{i}", "/v1/completions", body), 30) for i in range(10))
    found = estimate(path, lengths)
    assert (found.lines, found.output, found.learned) == (50, 30.0, 1.0)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"nonsense\n", b"[]\n" * 100_000])
def test_a_file_that_makes_no_batch_is_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    assert estimate(path, Lengths("m")).lines == 0


def test_a_batch_is_foretold_while_it_runs_and_after(service: EchoService) -> None:
    client = service.start("--echo-seconds", "0.05", "--pool", "4")
    warm = create(client, lines(150, name="warm"))
    assert forecast(service, warm.id)["basis"] == "none"
    wait_for(client, warm.id)
    ended = forecast(service, warm.id)
    assert (ended["basis"], ended["window_kept"], ended["completion_tokens"]) == ("ended", True, 2 * 150)
    content = lines(300, name="run") + b"".join(
        request(f"twin{i}", "the same", temperature=0) for i in range(20)
    )
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    made = client.batches.with_raw_response.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    batch = made.parse()
    assert batch.created_at <= int(made.headers["X-Forecast-End"]) < batch.expires_at
    wait_until(client, batch.id, lambda batch: batch.request_counts.completed > 60)
    told = forecast(service, batch.id)
    assert (told["basis"], told["window_kept"], told["expires_at"]) == ("measured", True, batch.expires_at)
    assert told["gpu_seconds"] > 0.0
    assert batch.created_at < told["expected_end"] < batch.expires_at
    assert told["prompt_tokens"] == 10 * 301
    assert told["tokens_saved"] == {"dedupe": 12 * 19, "sharing": 4 * 301}
    assert httpx.get(f"{service.url}/batches/batch_0/forecast").status_code == 404


def forecast(service: EchoService, id: str) -> dict[str, Any]:
    reply = httpx.get(f"{service.url}/batches/{id}/forecast")
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    return told


def test_a_line_without_an_end_is_not_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as content:
        content.write(request("r0", "one"))
        content.truncate(1 << 30)  # zeros, which take no disk
    tracemalloc.start()
    try:
        assert estimate(file, Lengths("m")).lines > 0
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()

"""Stand-ins for SGLang, for tests of what happens around it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

from sglang.batch.input.lines import read_lines
from sglang.batch.records import Answer, BatchRequest, Usage, parse_lines
from sglang.batch.run.committer import Finished
from sglang.batch.run.job import BatchJob
from sglang.batch.run.recovery import Work
from sglang.batch.run.tally import Tally


def line(custom_id: str, /, **changes: Any) -> bytes:
    """A valid input line; `changes` replaces its fields."""
    fields: dict[str, Any] = {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "m", "prompt": custom_id},
        **changes,
    }
    return json.dumps(fields).encode() + b"\n"


async def settled() -> None:
    """Let the event loop turn until what waits for no clock and no thread has settled.

    It takes some ten turns. A short sleep would not do: on a busy machine it may be over after one.
    """
    for _ in range(100):
        await asyncio.sleep(0)


class FakeAnswerer:
    """Answers after `seconds` by custom_id, else at once; raises for the requests named in `raises`."""

    def __init__(self, *, seconds: dict[str, float] | None = None, raises: Container[str] = ()) -> None:
        self.seconds = seconds or {}
        self.raises = raises
        self.running = 0
        self.most_running = 0
        self.cancelled: list[str] = []
        self.seen: list[str] = []

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        self.seen.append(request.custom_id)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.seconds.get(request.custom_id, 0))
            if request.custom_id in self.raises:
                raise RuntimeError(f"cannot run {request.custom_id}")
            if request.custom_id.startswith("refused"):
                return Answer(400, b'{"object":"error"}', code="BadRequestError", message="too long")
            body = json.dumps({"echo": request.custom_id}).encode()
            return Answer(200, body, Usage(prompt=10, cached=4, completion=2, reasoning=1))
        except asyncio.CancelledError:
            self.cancelled.append(request.custom_id)
            raise
        finally:
            self.running -= 1


class FakeCommitter:
    """Writes at once, into memory; `write` may raise."""

    def __init__(
        self, on_commit: Callable[[Finished], object], write: Callable[[bytes], object] = lambda record: None
    ) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self._on_commit = on_commit
        self._write = write

    async def commit(self, finished: Finished) -> None:
        self._write(finished.record)
        self._on_commit(finished)


def job(
    engine: FakeAnswerer, write: Callable[[bytes], object] = lambda record: None, **options: Any
) -> BatchJob:
    """A job without files."""
    return BatchJob(engine, lambda on_commit: FakeCommitter(on_commit, write), tally=Tally(), **options)


def work(lines: Iterable[bytes]) -> Iterator[Work]:
    """What a job gets of an input."""
    for position, item in enumerate(parse_lines(read_lines(lines))):
        yield Work(position, item, None)


class FakeBarrier:
    """Records what a job asks of its barrier."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.settled: list[str] = []

    async def close(self) -> None:
        self.calls.append("close")

    async def settle(self, in_flight: Container[str], request_ids: Iterable[str]) -> None:
        self.calls.append("settle")
        self.settled = list(request_ids)

    async def open(self) -> None:
        self.calls.append("open")

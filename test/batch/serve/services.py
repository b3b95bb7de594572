"""A service with the echo engine in a process of its own, and what must hold of its batches."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from echo_jobs import SECONDS, request
from openai import OpenAI
from openai.types import Batch

SCRIPT = Path(__file__).parents[2] / "faults" / "echo_serve.py"
LAST = ("completed", "failed", "expired", "cancelled")


def lines(count: int, prompt: str | None = None, *, name: str = "r", **body: Any) -> bytes:
    return b"".join(request(f"{name}{i}", prompt, **body) for i in range(count))


class EchoService:
    """One service and its store in a folder."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self.said = folder / "said.txt"
        self.echo_log = folder / "echo.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def command(self, *flags: str) -> list[str]:
        files = ["--store", str(self.store), "--echo-log", str(self.echo_log), "--port", "0"]
        return [sys.executable, str(SCRIPT), *files, *flags]

    def start(self, *flags: str) -> OpenAI:
        """Start it, again too; returns a client."""
        begin = self.said.stat().st_size if self.said.exists() else 0
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(self.command(*flags), stdin=subprocess.DEVNULL, stderr=said)
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(r"listening on ([^\s\"]+)", self.said.read_bytes()[begin:].decode())):
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.url = found[1]
        return self.client()

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=SECONDS)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def terminate(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)

    def computed(self) -> Counter[str]:
        """How often each custom_id was computed by all engines."""
        return Counter(self.echo_log.read_text().split()) if self.echo_log.exists() else Counter()


def write_keys(folder: Path, *keys: str) -> Path:
    """A file for `--api-keys`."""
    path = folder / "keys.txt"
    path.write_text("".join(f"{hashlib.sha256(key.encode()).hexdigest()} {key}\n" for key in keys))
    return path


def create(client: OpenAI, content: bytes, **options: Any) -> Batch:
    """Upload a file and begin a batch of it."""
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    options = {"endpoint": "/v1/completions", "completion_window": "24h"} | options
    return client.batches.create(input_file_id=file.id, **options)


def wait_for(client: OpenAI, id: str, states: Sequence[str] = LAST) -> Batch:
    return wait_until(client, id, lambda batch: batch.status in states)


def wait_until(client: OpenAI, id: str, reached: Callable[[Batch], bool]) -> Batch:
    """Poll until a batch is so far; its counts only grow meanwhile."""
    deadline = time.monotonic() + SECONDS
    before = (0, 0, 0)
    while True:
        batch = client.batches.retrieve(id)
        now = counts(batch)
        assert all(one <= other for one, other in zip(before, now, strict=True)), (before, now)
        before = now
        if reached(batch):
            return batch
        assert time.monotonic() < deadline, batch
        time.sleep(0.02)


def counts(batch: Batch) -> tuple[int, int, int]:
    assert batch.request_counts is not None
    return batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed


def records(client: OpenAI, file: str | None) -> list[dict[str, Any]]:
    """The records of a file; none of no file."""
    if file is None:
        return []
    return [json.loads(line) for line in client.files.content(file).read().splitlines()]


def assert_whole(client: OpenAI, batch: Batch, ids: Sequence[str]) -> None:
    """Each line has one record, and the counts say so."""
    answered, failed = records(client, batch.output_file_id), records(client, batch.error_file_id)
    assert sorted(record["custom_id"] for record in answered + failed) == sorted(ids)
    assert len({record["id"] for record in answered + failed}) == len(ids)
    assert counts(batch) == (len(ids), len(answered), len(failed))
    assert (batch.output_file_id is None, batch.error_file_id is None) == (not answered, not failed)

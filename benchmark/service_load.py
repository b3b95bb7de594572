"""`sglang-batch serve` under load: clients that poll and upload while jobs run, and uploads of 200 MB.

The service runs with the tests' echo engine, which answers each request after up to 50 ms, in processes of
their own. The jobs are run twice: alone, and with clients that each poll their job and list files, then
pause, and upload 100 KB every tenth time; the clients are one process on the same machine. Then, on a service
of its own, 200 MB are uploaded at once: lines that are none, one line without an end, a form that is cut off,
one byte too many, and millions of short lines of which the last has the id of the first.

    python -m benchmark.service_load --lines 300 --clients 10
    python -m benchmark.service_load --json benchmark/results/service_load.json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from benchmark import provenance

SCRIPT = Path(__file__).resolve().parents[1] / "test" / "faults" / "echo_serve.py"

SMALL, LARGE = 100_000, 200_000_000
"""Bytes of an upload under load, and of one by itself."""

SECONDS = 600.0
"""Until something that should happen has failed to."""


class Service:
    """A service in a folder, with the echo engine."""

    def __init__(self, folder: Path) -> None:
        said = folder / "said.txt"
        files = ["--store", str(folder / "store"), "--echo-log", str(folder / "echo.log"), "--port", "0"]
        command = [sys.executable, str(SCRIPT), *files, "--echo-seconds", "0.05", "--pool", "512"]
        command += ["--max-requests", "10000000"]
        with said.open("wb") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr, stdin=subprocess.DEVNULL)
        until = time.monotonic() + SECONDS
        while not (found := re.search(r"listening on (\S+)/v1", said.read_text())):
            if self.process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the service did not start:\n{said.read_text()}")
            time.sleep(0.05)
        self.url = found[1]
        while httpx.get(f"{self.url}/health").status_code != 200:
            time.sleep(0.05)

    def memory(self, name: str = "VmHWM") -> float:
        """Resident memory of the service's own process in MB, by default the most so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return round(int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) * 1024 / 1e6, 1)

    def stop(self) -> None:
        """Stop it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@contextmanager
def service() -> Iterator[Service]:
    """Run a service in a folder that goes with it."""
    with tempfile.TemporaryDirectory() as folder:
        running = Service(Path(folder))
        try:
            yield running
        finally:
            running.stop()


def lines(job: int, count: int) -> bytes:
    """Write the lines of a job, each its own."""
    return b"".join(
        json.dumps(
            {
                "custom_id": f"{job}-{i}",
                "method": "POST",
                "url": "/v1/completions",
                "body": {"prompt": f"{job} {i} " + "x" * 200},
            }
        ).encode()
        + b"\n"
        for i in range(count)
    )


async def begin(client: httpx.AsyncClient, content: bytes) -> str:
    """Upload a file and begin a batch of it; returns its id."""
    file = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})
    body = {"input_file_id": file.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = await client.post("/v1/batches", json=body)
    return str(batch.raise_for_status().json()["id"])


async def poll(
    client: httpx.AsyncClient,
    id: str,
    pause: float,
    over: asyncio.Event,
    times: list[float],
    statuses: Counter[str],
) -> None:
    """Be a client until it is over, and note how long each poll of a batch took and what came of all."""
    content = os.urandom(SMALL // 2).hex().encode()
    done = random.randrange(10)
    while not over.is_set():
        try:
            began = time.perf_counter()
            reply = await client.get(f"/v1/batches/{id}")
            times.append(time.perf_counter() - began)
            statuses[str(reply.status_code)] += 1
            statuses[str((await client.get("/v1/files", params={"limit": 20})).status_code)] += 1
            if done % 10 == 0:
                file = {"file": ("in.jsonl", content)}
                reply = await client.post("/v1/files", data={"purpose": "batch"}, files=file)
                statuses[str(reply.status_code)] += 1
        except httpx.HTTPError as error:
            statuses[type(error).__name__] += 1
        done += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), random.uniform(0.5, 1.5) * pause)


async def ended(client: httpx.AsyncClient, ids: list[str]) -> None:
    """Wait until all batches have ended, with every line answered."""
    until = time.monotonic() + SECONDS
    for id in ids:
        while (batch := (await client.get(f"/v1/batches/{id}")).json())["status"] != "completed":
            if time.monotonic() > until:
                raise SystemExit(f"{id} is {batch['status']}: {batch['request_counts']}")
            await asyncio.sleep(0.2)
        if batch["request_counts"]["completed"] != batch["request_counts"]["total"]:
            raise SystemExit(f"{id}: {batch['request_counts']}")


async def jobs_run(
    running: Service, *, jobs: int, count: int, clients: int, pause: float = 1.0
) -> dict[str, Any]:
    """Run jobs beside clients; returns lines per second and what the clients saw."""
    limits = httpx.Limits(max_connections=clients + 10, max_keepalive_connections=clients + 10)
    async with httpx.AsyncClient(base_url=running.url, limits=limits, timeout=SECONDS) as client:
        over, times, statuses = asyncio.Event(), list[float](), Counter[str]()
        began, spent = time.monotonic(), time.process_time()
        ids = [await begin(client, lines(job, count)) for job in range(jobs)]
        polling = [
            asyncio.create_task(poll(client, ids[i % jobs], pause, over, times, statuses))
            for i in range(clients)
        ]
        await ended(client, ids)
        seconds = time.monotonic() - began
        over.set()
        await asyncio.gather(*polling)
    figures: dict[str, Any] = {
        "seconds": round(seconds, 2),
        "lines_per_second": round(jobs * count / seconds),
    }
    if clients:
        figures["statuses"] = dict(statuses)
        figures["polls"] = len(times)
        for share in (50, 99):
            figures[f"poll_p{share}_ms"] = round(1000 * float(np.percentile(times, share)), 1)
    figures["peak_mb"] = running.memory()
    figures["service_cpu_seconds"] = round(sum(psutil.Process(running.process.pid).cpu_times()[:2]), 1)
    figures["clients_cpu_seconds"] = round(time.process_time() - spent, 1)
    return figures


async def form(pieces: Iterable[bytes], *, whole: bool = True) -> AsyncIterator[bytes]:
    """Yield a form with a file, without having it in memory."""
    yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    for piece in pieces:
        yield piece
    if whole:
        yield b"\r\n--b--\r\n"


def repeated(size: int, block: bytes = b"{broken\n") -> Iterator[bytes]:
    """Yield so many bytes of one block."""
    piece = block * (65536 // len(block))
    for _ in range(size // len(piece)):
        yield piece
    yield piece[: size % len(piece)]


def short_lines(size: int) -> Iterator[bytes]:
    """Yield about so many bytes of the shortest lines that can be run, the first one again at the end."""
    line = b'{"custom_id":"%d","method":"POST","url":"/v1/completions","body":{"prompt":""}}\n'
    count = size // (len(line % 10**6))
    for first in range(0, count, 500):
        yield b"".join(line % i for i in range(first, min(first + 500, count)))
    yield line % 0


async def large_uploads(running: Service, size: int, *, short: int) -> dict[str, Any]:
    """Upload much, whole and broken; returns the statuses, and the memory before and at most.

    Args:
        size: bytes of an upload.
        short: bytes of one whose lines are as many as they can be.
    """
    figures: dict[str, Any] = {"bytes": size, "before_mb": running.memory("VmRSS")}
    headers = {"content-type": "multipart/form-data; boundary=b"}
    async with httpx.AsyncClient(base_url=running.url, timeout=SECONDS) as client:
        for name, content in (
            ("broken lines", form(repeated(size))),
            ("one line without an end", form(repeated(size, b"x"))),
            ("form cut off", form(repeated(size), whole=False)),
            ("a byte too many", form(repeated(LARGE + 1))),
            ("an id twice", form(short_lines(short))),
        ):
            reply = await client.post("/v1/files", content=content, headers=headers)
            found: dict[str, Any] = {"status": reply.status_code}
            if reply.status_code == 200:
                found["batch"] = await _fails(client, reply.json()["id"])
            figures[name] = {**found, "peak_mb": running.memory()}
    return figures


async def _fails(client: httpx.AsyncClient, file: str) -> str:
    body = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
    id = (await client.post("/v1/batches", json=body)).json()["id"]
    while (batch := (await client.get(f"/v1/batches/{id}")).json())["status"] == "validating":
        await asyncio.sleep(0.1)
    return f"{batch['status']}: {batch['errors']['data'][0]['code']}"


def measure(jobs: int, count: int, clients: int, pause: float, size: int) -> dict[str, Any]:
    """Measure all of it."""
    results: dict[str, Any] = {}
    for name, number in (("alone", 0), ("with clients", clients)):
        with service() as running:
            results[name] = asyncio.run(
                jobs_run(running, jobs=jobs, count=count, clients=number, pause=pause)
            )
        print(name, json.dumps(results[name]), flush=True)
    speeds = [results[name]["lines_per_second"] for name in ("with clients", "alone")]
    results["speed_ratio"] = round(speeds[0] / speeds[1], 3)
    with service() as running:
        results["uploads"] = asyncio.run(large_uploads(running, size, short=size))
    print("uploads", json.dumps(results["uploads"]), flush=True)
    return results


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--lines", type=int, default=2000, help="of each job (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds, about (default: %(default)s)")
    parser.add_argument("--bytes", type=int, default=LARGE, help="of a large upload (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    figures = {
        "command": f"python -m benchmark.service_load {' '.join(sys.argv[1:])}",
        "commit": provenance.commit(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "jobs": options.jobs,
        "lines": options.lines,
        "clients": options.clients,
        "pause": options.pause,
        **measure(options.jobs, options.lines, options.clients, options.pause, options.bytes),
    }
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

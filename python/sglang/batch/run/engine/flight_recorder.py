"""Which requests a scheduler works on, written where its supervisor can read it when it has been killed.

A file for each scheduler process; what is written into it outlives the process, in the kernel's page cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang.batch.run.engine.leftovers import temporary_folder

VARIABLE = "SGLANG_BATCH_FLIGHT_RECORDER"
"""Environment variable: the folder of the recordings."""


def folder(job: str) -> Path:
    """Name the folder of a job's recordings."""
    return temporary_folder(job) / "running"


def install(scheduler: Any, recordings: Path) -> None:
    """Let a scheduler class record the requests of each batch before it runs, when they have changed.

    The batch before stays in the recording: its results are looked at while the next one runs.

    Args:
        scheduler: upstream's class.
        recordings: the folder; made if it is not there.
    """
    recordings.mkdir(mode=0o700, exist_ok=True)
    file = os.open(recordings / str(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    run_batch: Callable[..., Any] = scheduler.run_batch
    last_key: object = None
    last = b""

    def recorded(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal last_key, last
        requests = batch.reqs
        key = requests and (id(requests), len(requests), requests[0].rid, requests[-1].rid)
        if key != last_key:
            now = " ".join(request.rid for request in requests).encode()
            os.pwrite(file, now + b"\n" + last + b"\n\n", 0)
            last_key, last = key, now
        return run_batch(self, batch, *args, **kwargs)

    scheduler.run_batch = recorded


def read(recordings: Path) -> frozenset[str] | None:
    """Read the ids of requests that schedulers were working on; None if none has written any."""
    found: set[str] = set()
    for path in recordings.glob("*") if recordings.is_dir() else ():
        ids = path.read_bytes().partition(b"\n\n")[0].decode(errors="replace").split()
        # Upstream runs a request for several answers as `<id>_0`, `<id>_1`, ...
        found.update(name.partition("_")[0] for name in ids)
    return frozenset(found) or None

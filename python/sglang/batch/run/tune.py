"""Flags for a run that its user has not set, chosen by what `plan` finds fastest for an excerpt of the input.

Only flags that move work about are chosen. A job keeps what it began with, whatever a later excerpt says.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from sglang.batch.input.source import Source, read_sources
from sglang.batch.run.journal import Journal
from sglang.batch.run.schema import JournalUnusable
from sglang.batch.usage import BadUsage

LEAST_LINES = 50_000
"""Lines from which tuning is tried: an excerpt takes up to a minute, and what it wins is a few percent."""

BLOCKS, BLOCK = 8, 250
"""The excerpt: so many blocks of so many lines that follow each other, evenly spread over the input."""

SECONDS = 60.0
"""Seconds after which simulations are given up."""

CHOSEN = ("--enable-mixed-chunk",)
"""Flags that may be chosen."""

RELATED = (
    *CHOSEN,
    *(
        "--config",
        "--chunked-prefill-size",
        "--enable-pdmux",
        "--disable-radix-cache",
        "--disaggregation-mode",
    ),
    *("--tp-size", "--tp", "--tensor-parallel-size", "--dp-size", "--data-parallel-size", "--pp-size"),
)
"""Flags of a user who has decided already, or runs what no excerpt is simulated for."""


@dataclass(frozen=True)
class Tuning:
    """What was chosen.

    Attributes:
        flags: of the server.
        why: in a sentence, also where nothing was chosen.
    """

    flags: tuple[str, ...]
    why: str


Recommend = Callable[[Sequence[Source], str, list[str]], list[tuple[str, str]]]
"""Recommends flags for inputs, a hardware profile and the server's flags: pairs of a flag and a reason."""


def tune(
    sources: Sequence[Source], server: list[str], journal: Path, *, recommend: Recommend, device: str | None
) -> Tuning:
    """Choose flags, or say why not.

    Args:
        server: the user's flags of the server, with a batch's defaults.
        journal: of the job; flags that it began with are taken again.
        device: name of the GPU; None without one.
    """
    if set_already := [flag for flag in server if flag.partition("=")[0] in RELATED]:
        return Tuning((), f"not tuned: {set_already[0]} is set")
    if ("--schedule-policy", "blend") not in pairwise(server):
        return Tuning((), "not tuned: only for --schedule-policy blend")
    if (before := _before(journal)) is not None:
        return before
    if device is None:
        return Tuning((), "not tuned: there is no GPU that could be simulated")
    if any(source.path is None for source in sources):
        return Tuning((), "not tuned: standard input is read once only")
    lines = sum(1 for _ in islice(read_sources(sources), LEAST_LINES))
    if lines < LEAST_LINES:
        return Tuning((), f"not tuned: {lines:,} lines are answered sooner than an excerpt is simulated")
    began = time.monotonic()
    try:
        with _excerpt(sources) as source:
            found = recommend([source], device, server)
    except TimeoutError:
        return Tuning((), f"not tuned: simulations of an excerpt did not end within {SECONDS:g} s")
    except BadUsage as error:
        return Tuning((), f"not tuned: {error}")
    chosen = [(flag, why) for flag, why in found if flag in CHOSEN]
    took = f"(an excerpt of {BLOCKS * BLOCK:,} lines, simulated in {time.monotonic() - began:.0f} s)"
    if not chosen:
        return Tuning((), f"tuned: the defaults are the fastest {took}")
    why = "; ".join(f"{flag}: {why}" for flag, why in chosen)
    return Tuning(tuple(flag for flag, _ in chosen), f"tuned: {why} {took}")


def planned(sources: Sequence[Source], device: str, server: list[str]) -> list[tuple[str, str]]:
    """Recommend as `plan` does.

    Raises:
        BadUsage: the excerpt cannot be planned; says why.
        TimeoutError: that takes too long.
    """
    (source,) = sources
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "sglang.batch.cli", "plan", "-i", str(source.path), "--quiet"]
        command += ["--hardware", device, "--tp-size", "1", "--policies", "blend"]
        command += ["--engines", "alternating,mixed", "--json", str(result), *server]
        # In a session of its own: it goes with all its simulations, and leaves nothing in this process.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, said = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        advice = json.loads(result.read_text())["advice"] if result.exists() else None
    if advice is None:
        raise BadUsage(said.strip().rpartition("\n")[2] or "an excerpt could not be simulated")
    return [(flag["text"], flag["why"]) for flag in advice["flags"]]


def device_name() -> str | None:
    """Ask the driver for the name of the GPU, with nothing loaded into this process; None without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return found.partition("\n")[0].strip() or None


def _before(path: Path) -> Tuning | None:
    """What an earlier run of the job has chosen."""
    if not path.exists():
        return None
    with contextlib.suppress(JournalUnusable, OSError, sqlite3.Error):
        journal = Journal(path, read_only=True)
        try:
            known: Any = journal.get("tuned")
            if known is not None and journal.has_history():
                return Tuning(tuple(known["flags"]), f"{known['why']}, by an earlier run of the job")
        finally:
            journal.close()
    return None


@contextlib.contextmanager
def _excerpt(sources: Sequence[Source]) -> Iterator[Source]:
    """Write an excerpt of the input where only its user can read it."""
    lines = sum(1 for _ in read_sources(sources))
    every = max(lines // BLOCKS, BLOCK)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "excerpt.jsonl"
        with path.open("wb") as file:
            for number, line in enumerate(read_sources(sources)):
                if number % every < BLOCK:
                    file.write(line.text + b"\n")
        yield Source(str(path), path)

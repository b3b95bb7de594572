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
"""Lines from which an excerpt is simulated: it takes up to a minute, and what it wins is a few percent."""

BLOCKS, BLOCK = 8, 250
"""The excerpt: so many blocks of so many lines that follow each other, evenly spread over the input."""

SECONDS = 60.0
"""Seconds after which simulations are given up."""

LARGE = 0.5
"""Share of a GPU's memory from which on a model's files may be too large for one GPU."""

NOTHING = ["--simulate-requests", "0"]
"""Flags of a plan that simulates nothing: it tells how many GPUs hold the model."""

CHOSEN = ("--schedule-policy", "--enable-mixed-chunk", "--tp-size")
"""Flags that may be chosen. The sizes that `plan` names beside them are the server's own defaults."""

RELATED = (
    "--enable-mixed-chunk",
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


@dataclass(frozen=True)
class Device:
    """The GPUs of this machine, as far as they are like the first.

    Attributes:
        name: of one, as the driver has it.
        count: how many there are.
        memory: bytes of one.
    """

    name: str
    count: int
    memory: int


Recommend = Callable[[Source, Device, list[str]], list[tuple[str, str]]]
"""Recommends flags for an excerpt, GPUs and the flags of `plan`: pairs of a flag and a reason."""


def tune(
    sources: Sequence[Source],
    server: list[str],
    journal: Path,
    *,
    recommend: Recommend,
    device: Device | None,
    weights: int = 0,
    policy_set: bool = False,
) -> Tuning:
    """Choose flags, or say why not.

    Args:
        server: the user's flags of the server, with a batch's defaults.
        journal: of the job; flags that it began with are taken again.
        device: None without a GPU.
        weights: bytes of the model's files; 0 where they are not known.
        policy_set: whether it was the user who asked for blend.
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
    too_large = device.count > 1 and weights > LARGE * device.memory
    if lines < LEAST_LINES and not too_large:
        return Tuning((), f"not tuned: {lines:,} lines are answered sooner than an excerpt is simulated")
    many = lines == LEAST_LINES
    how = ["--policies", "blend" if policy_set else "fcfs,blend"] if many else NOTHING
    began = time.monotonic()
    try:
        with _excerpt(sources) as source:
            found = recommend(source, device, [*how, *server])
    except TimeoutError:
        return Tuning((), f"not tuned: simulations of an excerpt did not end within {SECONDS:g} s")
    except BadUsage as error:
        return Tuning((), f"not tuned: {error}")
    seconds = f"{time.monotonic() - began:.0f} s"
    if not many:
        return _choose(found, device, "one GPU holds the model", f"(an excerpt, read in {seconds})")
    took = f"(an excerpt of {BLOCKS * BLOCK:,} lines, simulated in {seconds})"
    return _choose(found, device, "the defaults are the fastest", took)


def _choose(found: list[tuple[str, str]], device: Device, otherwise: str, took: str) -> Tuning:
    """Take what differs from the defaults.

    Args:
        otherwise: what is true where nothing does.
        took: what it rests on.
    """
    defaults = ("--schedule-policy blend", "--tp-size 1")
    chosen = [(text, why) for text, why in found if text.partition(" ")[0] in CHOSEN and text not in defaults]
    gpus = max((int(text.split()[1]) for text, _ in chosen if text.startswith("--tp-size ")), default=1)
    if gpus > device.count:
        return Tuning((), f"not tuned: the model needs {gpus} x {device.name}, and there are {device.count}")
    if not chosen:
        return Tuning((), f"tuned: {otherwise} {took}")
    why = "; ".join(f"{text}: {why}" for text, why in chosen)
    return Tuning(tuple(part for text, _ in chosen for part in text.split()), f"tuned: {why} {took}")


def planned(source: Source, device: Device, flags: list[str]) -> list[tuple[str, str]]:
    """Recommend as `plan` does.

    Args:
        flags: of `plan`, the server's among them.

    Raises:
        BadUsage: the excerpt cannot be planned; says why.
        TimeoutError: that takes too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "sglang.batch.cli", "plan", "-i", str(source.path), "--quiet"]
        command += [
            "--hardware",
            device.name,
            "--engines",
            "alternating,mixed",
            "--json",
            str(result),
            *flags,
        ]
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
        plan = json.loads(result.read_text()) if result.exists() else {}
    if plan.get("advice") is not None:
        return [(flag["text"], flag["why"]) for flag in plan["advice"]["flags"]]
    if "tensor_parallel" in plan and flags[: len(NOTHING)] == NOTHING:
        return [(f"--tp-size {plan['tensor_parallel']}", "as few GPUs as hold the model")]
    raise BadUsage(said.strip().rpartition("\n")[2] or "an excerpt could not be simulated")


def find_device() -> Device | None:
    """Ask the driver for the GPUs that CUDA may use; None without one. Loads nothing into this process."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        gpus = [line.rpartition(",") for line in found.splitlines() if line.strip()]
        name, _, mebibytes = gpus[0]
        count = sum(gpu[0] == name for gpu in gpus)
        if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
            count = min(count, len(visible.split(",")))
        return Device(name.strip(), count, int(mebibytes) << 20)
    except (OSError, subprocess.SubprocessError, LookupError, ValueError):
        return None


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

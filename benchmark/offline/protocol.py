"""Workers: an engine in a process (and environment) of its own, told what to run in JSON lines.

A worker says when it is ready, then answers each line it reads from stdin with one on stdout. Everything that
engines print goes to its log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Message = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
"""Where the benchmark package lies; it is not installed anywhere."""

STOP_SECONDS = 20
"""How long a worker may take to end by itself."""


class WorkerFailed(Exception):
    """A worker died or reported an error; the message ends with the end of its log."""


class Worker:
    """A running worker process.

    Args:
        command: what to start; it must call `serve`.
        log: file for its output.
        environment: added to ours.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
                start_new_session=True,  # so that its whole process group can be ended, and ctrl-C spares it
            )

    @property
    def pid(self) -> int:
        """The worker's process, which leads the group of all it started."""
        return self._process.pid

    def ready(self) -> Message:
        """Wait until the engine has started; what it says about itself."""
        return self._read()

    def call(self, message: Message) -> Message:
        """Send one line and wait for the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; reading says so
        return self._read()

    def stop(self) -> None:
        """Let the worker end, then make sure that nothing of its process group is left."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()

    def _read(self) -> Message:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
            raise WorkerFailed(f"exited with {self._process.wait()}; the end of {self._log}:\n{tail}")
        answer: Message = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(f"{answer['error']}; more in {self._log}")
        return answer


def serve(start: Callable[[Message], tuple[Callable[[Message], Message], Message]]) -> None:
    """A worker's main loop; returns when stdin ends.

    Args:
        start: takes the JSON object of the command line; returns what answers the lines, and the message
            that says the worker is ready.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else prints does so into the log

    def say(message: Message) -> None:
        answers.write(json.dumps(message) + "\n")

    def guarded(work: Callable[[], Message]) -> bool:
        try:
            say(work())
        except Exception as error:
            traceback.print_exc()
            say({"error": f"{type(error).__name__}: {error}"})
            return False
        return True

    handler: Callable[[Message], Message] | None = None

    def begin() -> Message:
        nonlocal handler
        handler, ready = start(json.loads(sys.argv[1]))
        return ready

    if guarded(begin):
        assert handler is not None
        for line in sys.stdin:
            message = json.loads(line)
            guarded(lambda message=message: handler(message))

"""Start a real SGLang server on a free loopback port, wait until it answers, stop it by its group."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

BLEND = ("--schedule-policy", "blend", "--max-total-tokens", "4096", "--chunked-prefill-size", "512")
"""Under blend, with a KV cache for about a quarter of 60 chats, so that the plan decides who runs."""

START_TIMEOUT = 480.0  # seconds; a start takes about 20 on two idle cores


class Server:
    """One running server process group and how to talk to it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log
        self.url = f"http://127.0.0.1:{port}"

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300)

    @property
    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300)

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"server exited with {self.process.returncode}:\n{self.tail()}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=60) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                pass
            time.sleep(0.25)
        raise TimeoutError(f"server not healthy after {START_TIMEOUT:.0f} s:\n{self.tail()}")

    def info(self) -> dict[str, Any]:
        """What /get_server_info answers: arguments and the schedulers' internal states."""
        with urllib.request.urlopen(f"{self.url}/get_server_info", timeout=60) as answer:
            info: dict[str, Any] = json.load(answer)
            return info

    def set_state(self, **numbers: float) -> list[bool]:
        """POST /set_internal_state: whether each scheduler took the numbers."""
        request = urllib.request.Request(
            f"{self.url}/set_internal_state",
            json.dumps({"server_args": numbers}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            taken: list[bool] = json.load(answer)
            return taken

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """Ask the server to end, then make sure that nothing of its process group is left."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_server(
    model: Path,
    log: Path,
    *arguments: str,
    command: Sequence[str] = (sys.executable, "-m", "sglang.launch_server"),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A healthy server for `model` in float32 on the CPU with a small KV cache; `arguments` come last.

    Raises:
        RuntimeError: the server exited; the message ends with its log.
        TimeoutError: it did not answer within START_TIMEOUT.
    """
    port = free_port()
    flags = {
        "--model-path": str(model),
        "--served-model-name": "tiny",
        "--device": "cpu",
        "--dtype": "float32",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--max-total-tokens": "16384",
        "--max-running-requests": "64",
        "--random-seed": "0",
    }
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, *(part for item in flags.items() for part in item), *arguments],
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", **(environment or {})},
            start_new_session=True,
        )
    server = Server(process, port, log)
    try:
        server.wait_until_healthy()
        yield server
    finally:
        server.stop()

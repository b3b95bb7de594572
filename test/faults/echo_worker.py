"""The echo engine as a worker, with a child as SGLang has them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import light_sglang  # noqa: F401  before all of SGLang
from echo import Echo

from sglang.batch.run.barrier import Barrier, NoBarrier
from sglang.batch.run.engine.protocol import EngineFailed
from sglang.batch.run.engine.worker import serve


class EchoEngine(Echo):
    def __init__(self, flags: list[str]) -> None:
        log, seconds = flags[-2:]
        if log == "/nowhere":
            raise EngineFailed("the engine did not start: no log")
        if log == "/forever":
            time.sleep(3600)
        self.loop = asyncio.new_event_loop()
        super().__init__(log, float(seconds))
        self._child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])

    def install_signal_handlers(self) -> None:
        pass

    def abort(self, request_id: str) -> bool:
        return False

    def barrier(self) -> Barrier:
        return NoBarrier()

    def progress(self) -> list[float]:
        return [self.running]

    def shutdown(self) -> None:
        self._child.kill()
        self._child.wait()


if __name__ == "__main__":
    serve(EchoEngine, sys.argv[1:])

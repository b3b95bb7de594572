"""SGLang in this process, a worker's: `sgl.Engine`, whose end this process survives."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sglang.batch.records import Answer, BatchRequest
from sglang.batch.request_handlers import RequestHandlers
from sglang.batch.run.barrier import Barrier, SchedulerBarrier
from sglang.batch.run.engine import flight_recorder
from sglang.batch.run.engine.protocol import EngineFailed
from sglang.batch.run.engine.signals import IGNORED
from sglang.batch.upstream import Engine, ServerArgs, TokenizerManager


class InProcessSGLang:
    """The processes of an engine, and the request handlers on it.

    Args:
        server_args: as parsed from the command line.

    Attributes:
        loop: the event loop that the engine's sockets belong to.
        tokenizer_manager: upstream's, in this process.
        handlers: answer requests.

    Raises:
        EngineFailed: the engine did not start; the message is upstream's.
    """

    def __init__(self, server_args: ServerArgs) -> None:
        try:
            self._engine: Engine = _engine_class()(server_args=server_args)
            self.loop = self._engine.loop
            self.tokenizer_manager = self._engine.tokenizer_manager
            self.handlers = RequestHandlers(self.tokenizer_manager, self._engine.template_manager)
            self._outputs = _count_outputs(self.tokenizer_manager)
        except Exception as error:
            raise EngineFailed(f"the engine did not start: {type(error).__name__}: {error}") from error

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run one request to its end."""
        return await self.handlers.answer(request, request_id)

    async def stream(
        self, request: BatchRequest, request_id: str, part: Callable[[bytes], Awaitable[None]]
    ) -> Answer:
        """Run one request to its end; its reply goes out in parts."""
        return await self.handlers.stream(request, request_id, part)

    def abort(self, request_id: str) -> bool:
        """Drop a request, all prompts of it; returns whether the engine had it."""
        known = self.tokenizer_manager.rid_to_state
        mine = [id for id in known if id == request_id or id.startswith(f"{request_id}_")]
        for id in mine:
            self.tokenizer_manager.abort_request(id)
        return bool(mine)

    def install_signal_handlers(self) -> None:
        """Let upstream install its handlers, which would otherwise come with the first request: they would
        end this process without a word. Whoever has better ones installs them after this."""
        self.tokenizer_manager.auto_create_handle_loop()

    async def internal_state(self) -> list[dict[str, Any]]:
        """Ask every data-parallel rank's scheduler for its state."""
        return await self.tokenizer_manager.get_internal_state()

    def barrier(self) -> Barrier:
        """Make a barrier.

        Raises:
            AttributeError, ImportError: this SGLang lacks what the barrier needs.
        """
        return SchedulerBarrier(self.tokenizer_manager)

    def progress(self) -> list[float]:
        """Count what has come from the engine, and what has gone to it or waits for its end."""
        return [self._outputs(), len(self.tokenizer_manager.rid_to_state)]

    def shutdown(self) -> None:
        """Stop every process of the engine; what is still running is dropped."""
        self._engine.shutdown()


def _engine_class() -> Callable[..., Engine]:
    """Derive an `sgl.Engine` whose end this process survives, through what upstream offers to subclasses."""
    from sglang.srt.entrypoints import engine

    class SurvivableEngine(engine.Engine):
        run_scheduler_process_func = staticmethod(_run_scheduler)
        run_detokenizer_process_func = staticmethod(_run_detokenizer)

        @classmethod
        def _launch_scheduler_processes(cls, *args: Any, **kwargs: Any) -> Any:
            # A scheduler that cannot start sends SIGQUIT, upon which upstream's handler, installed just
            # before this, kills this process. Without it the start fails with an exception, which can be
            # reported.
            signal.signal(signal.SIGQUIT, lambda number, frame: None)
            return super()._launch_scheduler_processes(*args, **kwargs)

    return SurvivableEngine


def _count_outputs(tokenizer_manager: TokenizerManager) -> Callable[[], int]:
    """Count the messages of tokens from here on; upstream sends one for every 50 tokens of a request at the
    latest (SGLANG_FORCE_STREAM_INTERVAL). Its own time of the last message counts replies to a poll, too."""
    handle, count = tokenizer_manager._handle_batch_output, 0

    async def counted(output: Any) -> Any:
        nonlocal count
        count += 1
        return await handle(output)

    tokenizer_manager._handle_batch_output = counted  # type: ignore[method-assign]
    return lambda: count


def _run_scheduler(*args: Any, **kwargs: Any) -> Any:
    """Run upstream's scheduler process as a child that ends with its parent and with nothing else."""
    _belong_to_parent()
    from sglang.srt.managers.scheduler import Scheduler, run_scheduler_process

    if recordings := os.environ.get(flight_recorder.VARIABLE):
        flight_recorder.install(Scheduler, Path(recordings))
    return run_scheduler_process(*args, **kwargs)


def _run_detokenizer(*args: Any, **kwargs: Any) -> Any:
    """Run upstream's detokenizer process, likewise."""
    _belong_to_parent()
    from sglang.srt.managers.detokenizer_manager import run_detokenizer_process

    return run_detokenizer_process(*args, **kwargs)


PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent dies."""


def _belong_to_parent() -> None:
    """Die with the parent from now on: upstream sees to that itself, twenty seconds of imports later. The
    signals that a service manager sends to all are the runner's business."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)  # it was dead before

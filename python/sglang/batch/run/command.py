"""`sglang-batch run`: SGLang up, job through, report out, SGLang down; and what a signal does to that."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

from sglang.batch.input.source import read_sources
from sglang.batch.progress import progress_bar
from sglang.batch.run.arguments import RunArguments
from sglang.batch.run.barrier import Barrier, NoBarrier, SchedulerBarrier
from sglang.batch.run.blend_history import BlendHistory
from sglang.batch.run.in_process import EngineFailed, InProcessSGLang
from sglang.batch.run.job import BatchJob
from sglang.batch.run.picture import PictureUnavailable, draw
from sglang.batch.run.report import Report
from sglang.batch.run.state_poller import StatePoller
from sglang.batch.upstream import ServerArgs
from sglang.batch.usage import BAD_USAGE

ALL_ANSWERED, SOME_FAILED, ENGINE_FAILED = 0, 1, 3
"""Exit codes, as `cli` explains them."""

STOP_SECONDS = 10.0
"""Seconds that the end of a run waits for what may hang with a broken engine."""

SIGNALLED = 128
"""Added to a signal's number, as shells do: ctrl-C exits with 130."""

REASONS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGQUIT: "an engine process died (its log is above)",
}
"""Signals that end a run, and what they mean."""


def run(arguments: RunArguments, server_args: ServerArgs) -> int:
    """Answer the input file.

    Returns:
        The exit code, as `cli` explains it.
    """
    say(f"starting the engine: {server_args.model_path}", quiet=arguments.quiet)
    try:
        sglang = InProcessSGLang(server_args)
    except EngineFailed as error:
        say(str(error))
        return ENGINE_FAILED
    try:
        return int(sglang.loop.run_until_complete(_run(arguments, server_args, sglang)))
    except OSError as error:
        say(f"a file is gone or in the way since the start: {error}")
        return BAD_USAGE
    finally:
        sglang.shutdown()


async def _run(arguments: RunArguments, server_args: ServerArgs, sglang: InProcessSGLang) -> int:
    stopped = _stop_on_signals(sglang)
    poller = StatePoller(sglang.tokenizer_manager.get_internal_state)
    polling = asyncio.ensure_future(poller.run())
    with (
        arguments.output.open("wb" if arguments.overwrite else "xb") as output,
        progress_bar(total=None, quiet=arguments.quiet) as show,
    ):

        def write(record: bytes) -> None:
            output.write(record)
            output.flush()

        job = BatchJob(
            sglang.handlers,
            write,
            pool=_pool(arguments, server_args),
            barrier=_barrier(arguments, sglang),
            on_record=show,
        )
        running = asyncio.ensure_future(job.run(read_sources(arguments.inputs)))
        both: set[asyncio.Future[Any]] = {running, stopped}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            running.cancel()
            await asyncio.wait({running}, timeout=STOP_SECONDS)

    tally = job.tally
    if stopped.done():
        number = stopped.result()
        say(f"{REASONS[number]}: {tally.done} of {tally.lines} lines read so far are in {arguments.output}")
        return ENGINE_FAILED if number == signal.SIGQUIT else SIGNALLED + number
    if error := running.exception():
        say(f"stopped after {tally.done} lines: {_first(error)}")
        return ENGINE_FAILED
    poller.stop()
    await asyncio.wait({polling}, timeout=STOP_SECONDS)
    if not polling.done() or polling.exception():
        say("the scheduler's own numbers are incomplete: it did not answer")
    report = Report.of(tally, server_args, kv_capacity=poller.capacity, blend=BlendHistory.of(poller.states))
    say(f"{tally.done} lines done, results in {arguments.output}\n{report.text()}", quiet=arguments.quiet)
    _write_report(arguments, report)
    return SOME_FAILED if tally.failed else ALL_ANSWERED


def _write_report(arguments: RunArguments, report: Report) -> None:
    """Write the report's files. The answers are safe by now: what fails here changes no exit code."""
    try:
        if arguments.report is not None:
            report.write_json(arguments.report)
        if arguments.report_png is not None:
            draw(report, arguments.report_png)
    except (OSError, PictureUnavailable) as error:
        say(f"report not written: {error}")


def say(text: str, *, quiet: bool = False) -> None:
    """Tell the user something, on stderr: stdout stays free."""
    if not quiet:
        print(f"sglang-batch: {text}", file=sys.stderr, flush=True)


def _stop_on_signals(sglang: InProcessSGLang) -> asyncio.Future[signal.Signals]:
    """Make a future that the first of the REASONS completes.

    Upstream's own handlers, which would end the process without a word about the results, are installed by
    its first request: ours come after.
    """
    sglang.tokenizer_manager.auto_create_handle_loop()
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[signal.Signals] = loop.create_future()

    def stop(number: signal.Signals) -> None:
        if not stopped.done():
            stopped.set_result(number)

    for number in REASONS:
        loop.add_signal_handler(number, stop, number)
    return stopped


def _pool(arguments: RunArguments, server_args: ServerArgs) -> int:
    """Count the requests in flight at most: not more than the server is told to queue, or it would refuse
    the rest."""
    limit = server_args.max_queued_requests
    return min(arguments.pool, limit) if limit else arguments.pool


def _barrier(arguments: RunArguments, sglang: InProcessSGLang) -> Barrier:
    if not arguments.pool_barrier:
        return NoBarrier()
    try:
        return SchedulerBarrier(sglang.tokenizer_manager)
    except (AttributeError, ImportError) as error:
        say(f"no pool barrier: this SGLang lacks {error}; the first plans see a part of the pool only")
        return NoBarrier()


def _first(error: BaseException) -> BaseException:
    """Unwrap the first error of a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

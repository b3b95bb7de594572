"""`sglang-batch run`: the job opened, SGLang up, open lines through, report out, SGLang down; and signals."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Protocol

from sglang.batch.progress import progress_bar
from sglang.batch.run.arguments import RunArguments
from sglang.batch.run.barrier import Barrier, NoBarrier
from sglang.batch.run.blend_history import BlendHistory
from sglang.batch.run.committer import DiskFailed
from sglang.batch.run.files import partial
from sglang.batch.run.identity import FILES, identity
from sglang.batch.run.in_process import EngineFailed, InProcessSGLang
from sglang.batch.run.job import BatchJob, Engine, EngineDied
from sglang.batch.run.lengths import Lengths, lengths_file
from sglang.batch.run.picture import PictureUnavailable, draw
from sglang.batch.run.recovery import OpenJob, open_job
from sglang.batch.run.report import Report
from sglang.batch.run.state_poller import StatePoller
from sglang.batch.run.status import START
from sglang.batch.run.tally import Tally
from sglang.batch.run.tune import device_name, planned, tune
from sglang.batch.upstream import ServerArgs
from sglang.batch.usage import BadUsage

ALL_ANSWERED, SOME_FAILED, ENGINE_FAILED, DISK_FAILED = 0, 1, 3, 4
"""Exit codes, as `cli` explains them."""

STOP_SECONDS = 10.0
"""Seconds that the end of a run waits for what may hang with a broken engine."""

SHORT_GRACE = 10.0
"""Seconds that requests in flight get at most where somebody else ends the run: spot notices are short."""

SIGNALLED = 128
"""Added to a signal's number, as shells do: ctrl-C exits with 130."""

REASONS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "the terminal was closed",
    signal.SIGQUIT: "an engine process died (its log is above)",
}
"""Signals that end a run, and what they mean."""


class StartedEngine(Engine, Protocol):
    """An engine that is up, as a run needs it.

    Attributes:
        loop: the event loop that it belongs to.
    """

    loop: asyncio.AbstractEventLoop

    def install_signal_handlers(self) -> None:
        """Install what the engine brings along; the run's own come after."""

    def barrier(self) -> Barrier:
        """Make a barrier; AttributeError and ImportError name what is missing for one."""

    async def internal_state(self) -> list[dict[str, Any]]:
        """Ask every scheduler for its state."""

    def shutdown(self) -> None:
        """Stop every process of the engine; what is still running is dropped."""


def tuned(arguments: RunArguments) -> RunArguments:
    """Add flags of the server that the user has not set, and say which and why."""
    if not arguments.tune:
        return arguments
    how = tune(
        arguments.inputs,
        arguments.server,
        arguments.files.journal,
        recommend=planned,
        device=device_name(),
    )
    say(how.why, quiet=arguments.quiet)
    return replace(arguments, server=[*arguments.server, *how.flags], tuning=how)


def run(
    arguments: RunArguments,
    server_args: ServerArgs,
    start: Callable[[ServerArgs], StartedEngine] = InProcessSGLang,
) -> int:
    """Answer the lines of the input that have no record yet.

    Returns:
        The exit code, as `cli` explains it.

    Raises:
        BadUsage: the job cannot be continued as asked.
    """
    errors = arguments.files.errors
    deciding = identity(server_args) | {"--errors": "-" if errors is None else errors.name}
    try:
        with open_job(
            arguments.files, identity=deciding, sources=arguments.inputs, how=arguments.how, say=say
        ) as job:
            return _run_open_job(arguments, server_args, job, start)
    except (OSError, sqlite3.Error) as error:
        say(f"the disk failed: {error}; the same command continues")
        return DISK_FAILED


def _run_open_job(
    arguments: RunArguments,
    server_args: ServerArgs,
    job: OpenJob,
    start: Callable[[ServerArgs], StartedEngine],
) -> int:
    tally = job.journal.tally()
    if tally.done == tally.lines:
        if job.logs:
            job.finish()
        say(f"nothing is left to do: {_where(arguments, tally)}", quiet=arguments.quiet)
        return SOME_FAILED if tally.failed else ALL_ANSWERED
    if tally.done:
        say(f"going on: {tally.done:,} of {tally.lines:,} lines are done", quiet=arguments.quiet)
    if arguments.tuning is not None:
        job.journal.set(tuned=asdict(arguments.tuning))
    say(f"starting the engine: {server_args.model_path}", quiet=arguments.quiet)
    try:
        engine = start(server_args)
    except EngineFailed as error:
        _note(job, "engine failed", str(error))
        say(str(error))
        return ENGINE_FAILED
    _note(job, START, f"{tally.done} of {tally.lines} lines are done")
    try:
        return int(engine.loop.run_until_complete(_run(arguments, server_args, job, tally, engine)))
    finally:
        engine.shutdown()


async def _run(
    arguments: RunArguments, server_args: ServerArgs, job: OpenJob, tally: Tally, engine: StartedEngine
) -> int:
    lengths = _lengths(arguments, server_args, job)
    told = (lambda request: request) if lengths is None else lengths.told
    stops = _Stops(engine)
    poller = StatePoller(engine.internal_state)
    polling = asyncio.ensure_future(poller.run())
    with progress_bar(total=tally.lines, done=tally.done, quiet=arguments.quiet) as show:
        batch = BatchJob(
            engine,
            lambda on_commit: job.committer(limits=arguments.commits, on_commit=on_commit, say=say),
            tally=tally,
            pool=_pool(arguments, server_args),
            barrier=_barrier(arguments, engine),
            on_record=show,
        )
        running = asyncio.ensure_future(batch.run(job.work(told)))
        await _wait(running, batch, stops, arguments.grace)
        error = _first(running.exception()) if running.done() and not running.cancelled() else None
        if stops.first.done() and not batch.committer.open.is_set():
            await batch.committer.abandon()
        else:
            try:
                await batch.committer.close()
            except DiskFailed as failed:
                error = failed

    if error is not None and not isinstance(error, DiskFailed | EngineDied):
        _note(job, "stopped", str(error))
        if isinstance(error, BadUsage):
            raise error
    if isinstance(error, DiskFailed):
        say(f"{error}; {tally.done:,} of {tally.lines:,} lines are done; the same command continues")
        return DISK_FAILED
    if stops.first.done() and tally.done < tally.lines:
        number = stops.first.result()
        _note(job, "stopped", REASONS[number])
        say(
            f"{REASONS[number]}: {tally.done:,} of {tally.lines:,} lines are in"
            f" {partial(job.files.output)}; the same command continues"
        )
        return ENGINE_FAILED if number == signal.SIGQUIT else SIGNALLED + number
    if error is not None:
        say(f"stopped after {tally.done:,} lines: {error}; the same command continues")
        return ENGINE_FAILED
    poller.stop()
    await asyncio.wait({polling}, timeout=STOP_SECONDS)
    if not polling.done() or polling.exception():
        say("the scheduler's own numbers are incomplete: it did not answer")
    _keep(lengths, job)
    job.finish()
    report = Report.of(tally, server_args, kv_capacity=poller.capacity, blend=BlendHistory.of(poller.states))
    report = replace(report, tuning=None if arguments.tuning is None else arguments.tuning.why)
    say(f"{_where(arguments, tally)}\n{report.text()}", quiet=arguments.quiet)
    _write_report(arguments, report)
    return SOME_FAILED if tally.failed else ALL_ANSWERED


async def _wait(running: asyncio.Future[None], batch: BatchJob, stops: _Stops, grace: float) -> None:
    """Wait until the batch has run, or has been stopped."""
    ends: set[asyncio.Future[Any]] = {running, stops.first}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        return
    number = stops.first.result()
    if number != signal.SIGQUIT:
        seconds = grace if number == signal.SIGINT else min(grace, SHORT_GRACE)
        say(f"{REASONS[number]}: what runs may end within {seconds:g} s; again to stop at once")
        batch.stop()
        ends = {running, stops.second}
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    running.cancel()
    await asyncio.wait({running}, timeout=STOP_SECONDS)


class _Stops:
    """Signals that end a run, from now on.

    Attributes:
        first, second: completed by the first and the second of the REASONS.
    """

    def __init__(self, engine: StartedEngine) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[signal.Signals] = loop.create_future()
        self.second: asyncio.Future[signal.Signals] = loop.create_future()
        engine.install_signal_handlers()
        for number in REASONS:
            loop.add_signal_handler(number, self._stop, number)

    def _stop(self, number: signal.Signals) -> None:
        for future in (self.first, self.second):
            if not future.done():
                future.set_result(number)
                return


def _note(job: OpenJob, kind: str, detail: str) -> None:
    """Note something in the journal, for `status`; a full disk is no reason to end otherwise than planned."""
    with contextlib.suppress(sqlite3.Error):
        job.journal.event(kind, detail)


def _lengths(arguments: RunArguments, server_args: ServerArgs, job: OpenJob) -> Lengths | None:
    """Collect what is known of the lengths of answers; None where nobody would read it."""
    if not arguments.learned_lengths or server_args.schedule_policy != "blend":
        return None
    lengths = Lengths(str(job.journal.get("identity").get(FILES) or server_args.model_path))
    lengths.load(lengths_file())
    lengths.learn(job.answered())
    return lengths


def _keep(lengths: Lengths | None, job: OpenJob) -> None:
    """Keep the lengths of a job's answers for later ones; it is done, so nothing that fails here matters."""
    with contextlib.suppress(BadUsage, OSError, sqlite3.Error):
        if lengths is not None:
            lengths.learn(job.answered())
            lengths.save(lengths_file())


def _where(arguments: RunArguments, tally: Tally) -> str:
    """Say how many lines are done and where their records are."""
    where = f"{tally.done:,} lines done, answers in {arguments.files.output}"
    if tally.failed and arguments.files.errors is not None:
        where += f", error records in {arguments.files.errors}"
    return where


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


def _pool(arguments: RunArguments, server_args: ServerArgs) -> int:
    """Count the requests in flight at most: not more than the server is told to queue, or it would refuse
    the rest."""
    limit = server_args.max_queued_requests
    return min(arguments.pool, limit) if limit else arguments.pool


def _barrier(arguments: RunArguments, engine: StartedEngine) -> Barrier:
    if not arguments.pool_barrier:
        return NoBarrier()
    try:
        return engine.barrier()
    except (AttributeError, ImportError) as error:
        say(f"no pool barrier: this SGLang lacks {error}; the first plans see a part of the pool only")
        return NoBarrier()


def _first(error: BaseException | None) -> BaseException | None:
    """Unwrap the first error of a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

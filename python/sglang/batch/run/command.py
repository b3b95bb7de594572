"""`sglang-batch run`: the job opened, an engine up, open lines through, report out, the engine down."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from sglang.batch.media import MediaGate
from sglang.batch.run.arguments import RunArguments
from sglang.batch.run.blend_history import BlendHistory
from sglang.batch.run.committer import DiskFailed
from sglang.batch.run.engine.protocol import Engine, EngineDied, EngineFailed
from sglang.batch.run.engine.supervisor import Supervisor
from sglang.batch.run.files import partial
from sglang.batch.run.identity import FILES, identity
from sglang.batch.run.lengths import Lengths, lengths_file
from sglang.batch.run.picture import PictureUnavailable, draw
from sglang.batch.run.recovery import OpenJob, open_job
from sglang.batch.run.report import Report
from sglang.batch.run.rounds import RoundLimits, Rounds
from sglang.batch.run.run_progress import shown_progress
from sglang.batch.run.stops import Stopped, Stops
from sglang.batch.run.tally import Tally
from sglang.batch.run.tune import device_name, planned, tune
from sglang.batch.upstream import ServerArgs
from sglang.batch.usage import BadUsage

ALL_ANSWERED, SOME_FAILED, ENGINE_FAILED, DISK_FAILED = 0, 1, 3, 4
"""Exit codes, as `cli` explains them."""

SIGNALLED = 128
"""Added to a signal's number, as shells do: ctrl-C exits with 130."""

WORKER = (sys.executable, "-m", "sglang.batch.run.engine.worker")
"""Command of an engine's first process."""


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
    make_engine: Callable[[OpenJob], Engine] | None = None,
    *,
    deciding: dict[str, Any] | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
) -> int:
    """Answer the lines of the input that have no record yet.

    Args:
        make_engine: makes what answers them; SGLang in processes of its own unless given.
        deciding: what decides answers; None for what the server's arguments say of it.
        loop: the event loop that the engine belongs to; None for one that ends with the run.

    Returns:
        The exit code, as `cli` explains it.

    Raises:
        BadUsage: the job cannot be continued as asked.
    """
    errors = arguments.files.errors
    deciding = identity(server_args) if deciding is None else deciding
    deciding = deciding | {"--errors": "-" if errors is None else errors.name}
    deciding |= arguments.inputs[0].rows.flags if arguments.inputs[0].rows else {}
    try:
        with open_job(
            arguments.files, identity=deciding, sources=arguments.inputs, how=arguments.how, say=say
        ) as job:
            engine = make_engine(job) if make_engine is not None else _supervised(arguments, job)
            return _run_open_job(arguments, server_args, job, engine, loop)
    except (OSError, sqlite3.Error) as error:
        say(f"the disk failed: {error}; the same command continues")
        return DISK_FAILED


def _supervised(arguments: RunArguments, job: OpenJob) -> Engine:
    return Supervisor(WORKER, arguments.server, job=job.id, stall=arguments.stall_timeout)


def _run_open_job(
    arguments: RunArguments,
    server_args: ServerArgs,
    job: OpenJob,
    engine: Engine,
    loop: asyncio.AbstractEventLoop | None,
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
    running = _run(arguments, server_args, job, tally, engine)
    ended = asyncio.run(running) if loop is None else loop.run_until_complete(running)
    if isinstance(ended, int):
        return ended
    ended = replace(ended, tuning=None if arguments.tuning is None else arguments.tuning.why)
    say(f"{_where(arguments, tally)}\n{ended.text()}", quiet=arguments.quiet)
    _write_report(arguments, ended)
    _write_html(arguments, server_args, job, ended)
    return SOME_FAILED if tally.failed else ALL_ANSWERED


async def _run(
    arguments: RunArguments, server_args: ServerArgs, job: OpenJob, tally: Tally, engine: Engine
) -> Report | int:
    """Run a job to its end; returns its report, or the exit code if it has ended before."""
    limits = RoundLimits(
        pool=_pool(arguments, server_args),
        barrier=arguments.pool_barrier,
        commits=arguments.commits,
        grace=arguments.grace,
        restarts=arguments.engine_restarts,
    )
    lengths = _lengths(arguments, server_args, job)
    rounds = Rounds(
        job,
        engine,
        MediaGate(engine, arguments.media),
        tally,
        limits,
        Stops(),
        told=(lambda request: request) if lengths is None else lengths.told,
        say=say,
    )
    poller = rounds.poller
    try:
        await rounds.start()
        async with shown_progress(tally, poller.states, pool=limits.pool, quiet=arguments.quiet):
            await rounds.run()
        await rounds.finish()
    except Exception as error:
        code = _how_it_ended(error, job, tally)
        rounds.note("stopped", str(error))
        return code
    finally:
        await engine.stop()
    _keep(lengths, job)
    job.finish()
    return Report.of(tally, server_args, kv_capacity=poller.capacity, blend=BlendHistory.of(poller.states))


def _how_it_ended(error: Exception, job: OpenJob, tally: Tally) -> int:
    """Say why a run has ended before all lines were done; returns its exit code.

    Raises:
        Exception: an error that is neither the engine's nor the disk's nor a signal.
    """
    done = f"{tally.done:,} of {tally.lines:,} lines"
    if isinstance(error, Stopped):
        say(f"{error}: {done} are in {partial(job.files.answers)}; the same command continues")
        return SIGNALLED + error.number
    if isinstance(error, EngineFailed | EngineDied):
        say(f"{error}; {done} are done; the same command continues")
        return ENGINE_FAILED
    if isinstance(error, DiskFailed):
        say(f"{error}; {done} are done; the same command continues")
        return DISK_FAILED
    raise error


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


def _write_html(arguments: RunArguments, server_args: ServerArgs, job: OpenJob, report: Report) -> None:
    """Write the report as a page, if that is asked for; the engine's memory is free again by now."""
    if arguments.report_html is None:
        return
    from sglang.batch.run.html_report import write_page

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ctrl-C ends the simulation only
    try:
        say(f"writing {arguments.report_html}; ctrl-C leaves the simulations out", quiet=arguments.quiet)
        write_page(arguments, server_args, job.journal.completion_tokens(), report)
    except (OSError, ImportError) as error:
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

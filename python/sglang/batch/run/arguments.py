"""The command line of `sglang-batch run`: its own few flags; the rest is the server's."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sglang.batch.input.rows import row_format
from sglang.batch.input.source import Source, add_input, find_sources
from sglang.batch.media import MediaPolicy, add_media_arguments, media_policy
from sglang.batch.run.committer import CommitLimits
from sglang.batch.run.files import JobFiles
from sglang.batch.run.ray_replicas.arguments import RayArguments, add_ray_arguments, check_ray
from sglang.batch.run.recovery import Continue
from sglang.batch.run.remote.arguments import RemoteArguments, add_remote_arguments, check_remote
from sglang.batch.run.tune import Tuning
from sglang.batch.server_flags import with_defaults
from sglang.batch.usage import BadUsage, check_folder

DEFAULT_POOL = 50_000
"""Requests that the planner sees at a time. Each of them takes about 30 KB of memory (22 in this process,
8 in the scheduler; measured with prompts of 180 tokens)."""

ALL_AT_ONCE = {"--blend-patience": "inf"}
"""Default of the server's flags: nobody waits for a single answer of a batch, so no wait is bounded."""

ENGINE_RESTARTS = 5
"""Deaths of the engine in a row, without an answer between, that a run puts up with."""

START_SECONDS = 3600.0
"""Seconds that the engine has to start, its model to be loaded."""

STALL_SECONDS = 600.0
"""Seconds without any progress after which an engine with requests counts as dead."""

GRACE = 30.0
"""Seconds that requests in flight get to end after ctrl-C."""

SIMULATE_REQUESTS = 2_000
"""Requests that are simulated at most for a report."""

USAGE = (
    "sglang-batch run -i FILE -o FILE (--model-path MODEL | --endpoint URL) [options]"
    " [server flags: --help-server]"
)


@dataclass(frozen=True)
class RunArguments:
    """The checked flags of `sglang-batch run`.

    Attributes:
        inputs: in the order of the command line.
        files: output, errors, and what lies beside them.
        how: what to do about a job that was begun before.
        commits: when records are committed.
        grace: seconds that requests in flight get after a signal.
        engine_restarts: deaths of the engine in a row, without an answer between, that are put up with.
        start_timeout: seconds that the engine has to start.
        stall_timeout: seconds without any progress after which the engine counts as dead.
        media: what requests may name beside data URLs.
        pool: requests in flight at most, at least 1.
        learned_lengths: whether lengths of earlier answers are used and kept.
        pool_barrier: whether admissions wait until the first pool is complete.
        tune: whether flags that the user has not set are chosen.
        policy_set: whether the user has set --schedule-policy.
        tuning: what was chosen and why; None where nothing was looked for.
        report, report_png, report_html: where the report goes as JSON, as a picture and as a page; None for
            nowhere.
        report_simulate: requests that the page's simulations take at most; 0 for none.
        server: flags for the server's own parser, a batch's defaults among them; none for a remote run.
        remote: running servers that answer; None for an engine of the run's own.
        ray: replicas of the engine on Ray; None for one engine.
    """

    inputs: tuple[Source, ...]
    files: JobFiles
    how: Continue
    commits: CommitLimits
    grace: float
    engine_restarts: int
    start_timeout: float
    stall_timeout: float
    media: MediaPolicy
    pool: int
    learned_lengths: bool
    pool_barrier: bool
    tune: bool
    policy_set: bool
    quiet: bool
    report: Path | None
    report_png: Path | None
    report_html: Path | None
    report_simulate: int
    server: list[str]
    remote: RemoteArguments | None
    ray: RayArguments | None
    tuning: Tuning | None = None


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that are `run`'s own; none is required here, so that `--help-server` works alone."""
    _add_files(parser)
    _add_continuation(parser)
    _add_durability(parser)
    add_engine_arguments(parser)
    add_media_arguments(parser)
    add_remote_arguments(parser)
    add_ray_arguments(parser)
    _add_dedupe(parser)
    parser.add_argument(
        "--pool",
        type=int,
        default=DEFAULT_POOL,
        metavar="N",
        help="requests in flight at most, which the planner sees together (default: %(default)s)",
    )
    parser.add_argument(
        "--no-pool-barrier",
        dest="pool_barrier",
        action="store_false",
        help="admit requests as they arrive, instead of waiting until the first pool is complete",
    )
    _add_reports(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no report on stderr")
    parser.add_argument(
        "--help-server", action="store_true", help="show the server's flags, which are all accepted, and exit"
    )


def _add_reports(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-learned-lengths",
        dest="learned_lengths",
        action="store_false",
        help="plan without the lengths of earlier answers, of this job and of others, and keep none",
    )
    parser.add_argument(
        "--tune",
        choices=("auto", "off"),
        default="auto",
        help="auto: on a GPU, take the --enable-mixed-chunk, --schedule-policy and --tp-size that"
        " `sglang-batch plan` recommends for an excerpt, where there are many lines or the model may be too"
        " large for one GPU, unless flags that matter are set; a minute at most (default: %(default)s)",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the final report as JSON too")
    parser.add_argument(
        "--report-png",
        type=Path,
        metavar="FILE",
        help="draw partition and memory over time (blend; needs matplotlib)",
    )
    parser.add_argument(
        "--report-html",
        type=Path,
        metavar="FILE",
        help="write a page with charts: use of compute and memory, sharing, lengths, prefix groups, why"
        " requests waited, what fcfs would have taken (needs matplotlib)",
    )
    parser.add_argument(
        "--report-simulate",
        type=int,
        default=SIMULATE_REQUESTS,
        metavar="N",
        help="requests that the page's simulation of fcfs takes at most, after the run; 0 for none"
        " (default: %(default)s)",
    )


def _add_files(parser: argparse.ArgumentParser) -> None:
    add_input(parser, more=", - for standard input")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="answers; FILE.partial until all are there. With the name *.parquet, a table with the input's"
        " columns",
    )
    parser.add_argument(
        "--errors",
        metavar="FILE",
        help="error records (default: OUTPUT.errors.jsonl, if there are any; -: into the output)",
    )
    parser.add_argument(
        "--in-order",
        action="store_true",
        help="records in the order of the input's lines (takes another copy of the output on the disk)",
    )


def _add_continuation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--restart",
        "--overwrite",
        dest="restart",
        action="store_true",
        help="begin anew; what an earlier run left is renamed to OUTPUT.old...",
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="run the lines again that have an error record"
    )
    parser.add_argument(
        "--retry-codes",
        metavar="CODES",
        help="the same for some error codes only, with commas between (`sglang-batch status` lists them)",
    )


def _add_dedupe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-dedupe",
        dest="dedupe",
        action="store_false",
        help="run equal requests once each; without this, those with temperature 0 or a seed are run once"
        " together, and all their lines get the answer",
    )


def _add_durability(parser: argparse.ArgumentParser) -> None:
    limits = CommitLimits()
    parser.add_argument(
        "--commit-ms",
        type=float,
        default=limits.seconds * 1000,
        metavar="MS",
        help="answers go to the disk together, so long after the first of them (default: %(default)g)",
    )
    parser.add_argument(
        "--commit-records",
        type=int,
        default=limits.records,
        metavar="N",
        help="or as soon as so many wait (default: %(default)s)",
    )
    parser.add_argument(
        "--disk-patience",
        type=float,
        default=limits.patience,
        metavar="SECONDS",
        help="wait so long for room on a full disk (default: %(default)g)",
    )
    parser.add_argument(
        "--no-keep-journal",
        dest="keep_journal",
        action="store_false",
        help="remove the journal at the end; nothing can be retried or added then",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE,
        metavar="SECONDS",
        help="time to end for what runs after ctrl-C (default: %(default)g)",
    )


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags about an engine's deaths."""
    parser.add_argument(
        "--engine-restarts",
        type=int,
        default=ENGINE_RESTARTS,
        metavar="N",
        help="start an engine that died again, up to N times in a row without an answer between"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--start-timeout",
        type=float,
        default=START_SECONDS,
        metavar="SECONDS",
        help="an engine that takes longer to load its model has not started (default: %(default)g)",
    )
    parser.add_argument(
        "--stall-timeout",
        type=float,
        default=STALL_SECONDS,
        metavar="SECONDS",
        help="an engine that gets nowhere for so long counts as dead (default: %(default)g)",
    )


def check_run(options: argparse.Namespace, server: Sequence[str]) -> RunArguments:
    """Check what can be checked before a model is loaded.

    Args:
        server: flags that the parser did not know.

    Raises:
        BadUsage: something is missing, unreadable or in the way.
    """
    _check_values(options)
    files = JobFiles.of(options.output, options.errors)
    sources = find_sources(options.input, rows=row_format(options), without=options.output)
    _check_output(files, sources)
    if not options.restart:
        files.check_free()
    for flag in ("report", "report_png", "report_html"):
        check_folder(f"--{flag.replace('_', '-')}", getattr(options, flag))
    if options.report_html is not None and find_spec("matplotlib") is None:
        raise BadUsage(f"--report-html {options.report_html}: needs matplotlib; pip install matplotlib")
    codes = options.retry_codes
    remote = check_remote(options, server)
    return RunArguments(
        inputs=sources,
        files=files,
        how=Continue(
            restart=options.restart,
            retry=options.retry_failed or codes is not None,
            codes=None if codes is None else tuple(code.strip() for code in codes.split(",")),
            in_order=options.in_order,
            keep_journal=options.keep_journal,
            dedupe=options.dedupe,
        ),
        commits=CommitLimits(options.commit_ms / 1000, options.commit_records, options.disk_patience),
        grace=options.grace,
        engine_restarts=options.engine_restarts,
        start_timeout=options.start_timeout,
        stall_timeout=options.stall_timeout,
        media=media_policy(options),
        pool=options.pool,
        learned_lengths=options.learned_lengths,
        pool_barrier=options.pool_barrier,
        tune=options.tune == "auto",
        policy_set=any(part.partition("=")[0] == "--schedule-policy" for part in server),
        quiet=options.quiet,
        report=options.report,
        report_png=options.report_png,
        report_html=options.report_html,
        report_simulate=options.report_simulate,
        server=with_defaults(server, ALL_AT_ONCE) if remote is None else [],
        remote=remote,
        ray=check_ray(options),
    )


def _check_values(options: argparse.Namespace) -> None:
    for flag in ("input", "output"):
        if getattr(options, flag) is None:
            raise BadUsage(f"-{flag[0]}/--{flag} is required")
    for flag, minimum in (
        ("pool", 1),
        ("commit_ms", 0),
        ("commit_records", 1),
        ("disk_patience", 0),
        ("grace", 0),
        ("engine_restarts", 0),
        ("start_timeout", 1),
        ("stall_timeout", 1),
        ("report_simulate", 0),
    ):
        if not getattr(options, flag) >= minimum:
            value = getattr(options, flag)
            raise BadUsage(f"--{flag.replace('_', '-')} {value:g}: must be at least {minimum}")


def _check_output(files: JobFiles, sources: Sequence[Source]) -> None:
    for flag, path in (("--output", files.output), ("--errors", files.errors)):
        if path is None:
            continue
        check_folder(flag, path)
        if path.exists() and not path.is_file():
            raise BadUsage(f"{flag} {path}: is no file; name one")
        if any(source.path is not None and source.path.resolve() == path for source in sources):
            raise BadUsage(f"{flag} {path}: is the input file; choose another name")
        if not os.access(path.parent, os.W_OK):
            raise BadUsage(f"{flag} {path}: folder {path.parent} cannot be written; choose a place that can")
    if files.parquet:
        if files.errors is not None and files.errors.suffix == ".parquet":
            raise BadUsage("--errors: are JSONL; choose another name, or pass --errors - for the output")
        from sglang.batch.run.parquet import check_parquet

        check_parquet(sources)
    if files.errors in (files.output, files.answers):
        raise BadUsage("--errors: is the output; pass --errors - for records of both kinds in one file")

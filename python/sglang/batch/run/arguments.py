"""The command line of `sglang-batch run`: its own few flags; the rest is the server's."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang.batch.input.source import Source, find_sources
from sglang.batch.server_flags import with_defaults
from sglang.batch.usage import BadUsage, check_folder

DEFAULT_POOL = 50_000
"""Requests that the planner sees at a time. Each of them takes about 30 KB of memory (22 in this process,
8 in the scheduler; measured with prompts of 180 tokens)."""

USAGE = "sglang-batch run -i FILE -o FILE --model-path MODEL [options] [server flags: --help-server]"


@dataclass(frozen=True)
class RunArguments:
    """The checked flags of `sglang-batch run`.

    Attributes:
        pool: requests in flight at most, at least 1.
        pool_barrier: whether admissions wait until the first pool is complete.
        report, report_png: where the report goes as JSON and as a picture; None for nowhere.
        server: flags for the server's own parser, a batch's defaults among them.
    """

    inputs: tuple[Source, ...]
    output: Path
    overwrite: bool
    pool: int
    pool_barrier: bool
    quiet: bool
    report: Path | None
    report_png: Path | None
    server: list[str]


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that are `run`'s own; none is required here, so that `--help-server` works alone."""
    parser.add_argument(
        "-i",
        "--input",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="requests, OpenAI Batch input format; also gzip and zstd, folders, globs, - for standard input",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="results, written as they finish")
    parser.add_argument("--overwrite", action="store_true", help="replace an output file that exists")
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
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the final report as JSON too")
    parser.add_argument(
        "--report-png",
        type=Path,
        metavar="FILE",
        help="draw partition and memory over time (blend; needs matplotlib)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no report on stderr")
    parser.add_argument(
        "--help-server", action="store_true", help="show the server's flags, which are all accepted, and exit"
    )


def check_run(options: argparse.Namespace, server: Sequence[str]) -> RunArguments:
    """Check what can be checked before a model is loaded.

    Args:
        server: flags that the parser did not know.

    Raises:
        BadUsage: something is missing, unreadable or in the way.
    """
    for flag in ("input", "output"):
        if getattr(options, flag) is None:
            raise BadUsage(f"-{flag[0]}/--{flag} is required")
    if options.pool < 1:
        raise BadUsage(f"--pool {options.pool}: at least one request must be in flight")
    sources = find_sources(options.input, without=options.output)
    _check_output(options.output, sources, overwrite=options.overwrite)
    for flag, path in (("--report", options.report), ("--report-png", options.report_png)):
        check_folder(flag, path)
    return RunArguments(
        inputs=sources,
        output=options.output,
        overwrite=options.overwrite,
        pool=options.pool,
        pool_barrier=options.pool_barrier,
        quiet=options.quiet,
        report=options.report,
        report_png=options.report_png,
        server=with_defaults(server),
    )


def _check_output(path: Path, sources: Sequence[Source], *, overwrite: bool) -> None:
    if path.is_dir():
        raise BadUsage(f"--output {path}: is a folder; name a file")
    check_folder("--output", path)
    if path.exists():
        if any(source.path is not None and path.samefile(source.path) for source in sources):
            raise BadUsage(f"--output {path}: is the input file; choose another name")
        if not overwrite:
            raise BadUsage(f"--output {path}: exists; choose another name or pass --overwrite")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadUsage(f"--output {path}: cannot be written; choose a place that can")

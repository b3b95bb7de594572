"""The command line of `sglang-batch run`: our few flags, and all of the server's passed on."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_POOL = 50_000
"""Requests the planner sees at a time. One in flight takes about 30 KB of memory (22 in this process, 8 in
the scheduler; measured with prompts of 180 tokens)."""

SERVER_DEFAULTS = {"--schedule-policy": "blend", "--log-level": "warning"}
"""Where a batch wants something else than a server."""


USAGE = "sglang-batch run -i FILE -o FILE --model-path MODEL [options] [server flags: --help-server]"


BAD_USAGE = 2
"""Exit code, as argparse has it."""


class BadUsage(Exception):
    """The command cannot run as given; the message names the flag and the remedy. Exit code 2."""


@dataclass(frozen=True)
class RunArguments:
    """`sglang-batch run`, checked. `server` is what is left for the server's own parser."""

    input: Path
    output: Path
    overwrite: bool
    pool: int
    pool_barrier: bool
    quiet: bool
    report: Path | None
    report_png: Path | None
    server: list[str]


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i", "--input", type=Path, metavar="FILE", help="requests, OpenAI Batch input format"
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


def check(options: argparse.Namespace, server: Sequence[str]) -> RunArguments:
    """Check what can be checked before a model is loaded.

    Raises:
        BadUsage: something is missing, unreadable or in the way.
    """
    for flag in ("input", "output"):
        if getattr(options, flag) is None:
            raise BadUsage(f"-{flag[0]}/--{flag} is required")
    if options.pool < 1:
        raise BadUsage(f"--pool {options.pool}: at least one request must be in flight")
    check_input(options.input)
    _check_output(options.output, options.input, overwrite=options.overwrite)
    for flag, path in (("--report", options.report), ("--report-png", options.report_png)):
        if path is not None and not path.parent.is_dir():
            raise BadUsage(f"{flag} {path}: folder {path.parent} does not exist; create it first")
    return RunArguments(
        input=options.input,
        output=options.output,
        overwrite=options.overwrite,
        pool=options.pool,
        pool_barrier=options.pool_barrier,
        quiet=options.quiet,
        report=options.report,
        report_png=options.report_png,
        server=with_defaults(server),
    )


def check_input(path: Path) -> None:
    if path.is_dir():
        raise BadUsage(f"--input {path}: is a folder; name a .jsonl file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise BadUsage(f"--input {path}: cannot be read ({error.strerror})") from error


def _check_output(path: Path, source: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise BadUsage(f"--output {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise BadUsage(f"--output {path}: folder {path.parent} does not exist; create it first")
    if path.exists():
        if path.samefile(source):
            raise BadUsage(f"--output {path}: is the input file; choose another name")
        if not overwrite:
            raise BadUsage(f"--output {path}: exists; choose another name or pass --overwrite")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadUsage(f"--output {path}: cannot be written; choose a place that can")


def with_defaults(server: Sequence[str]) -> list[str]:
    """The server's flags and a batch's defaults for those that neither they nor a `--config` file set."""
    given = {part.partition("=")[0] for part in server} | _config_keys(server)
    defaults = [
        part for flag, value in SERVER_DEFAULTS.items() if flag not in given for part in (flag, value)
    ]
    # The engine counts cached tokens anyway; this lets them through to the usage of each response.
    return [*defaults, "--enable-cache-report", *server]


def _config_keys(server: Sequence[str]) -> set[str]:
    """Flags that a `--config` file sets; none if it cannot be read (upstream's parser will say so)."""
    import yaml

    if "--config" not in server[:-1]:
        return set()
    try:
        config: Any = yaml.safe_load(Path(server[list(server).index("--config") + 1]).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return set()
    return {f"--{key}".replace("_", "-") for key in config} if isinstance(config, dict) else set()


def parse_server_args(argv: list[str], *, usage: str = USAGE) -> Any:
    """Upstream's `ServerArgs`, from upstream's parser.

    Args:
        usage: of the command that takes the flags, for error messages.

    Raises:
        SystemExit: the parser printed an error (2).
        BadUsage: the arguments parse and upstream refuses them.
        ModelUnavailable: `--model-path smollm2` cannot be resolved.
    """
    from sglang.batch.smollm2 import resolve_model_path
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    load_plugins()
    if "--config" not in argv:
        # The same flags first under a usage line of our own: upstream's is 300 lines long and would
        # push its error message off the screen.
        _server_parser(usage).parse_args(argv)
    try:
        server_args = prepare_server_args(argv)
    except (ValueError, AssertionError) as error:
        raise BadUsage(f"server flags: {error}") from error
    # Upstream's launchers, too, fill in the record before it is resolved.
    server_args.model_path = resolve_model_path(server_args.model_path)
    return server_args


def print_server_help() -> None:
    """Every flag of the server, with its help."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
    _server_parser(USAGE).print_help()


def _server_parser(usage: str) -> argparse.ArgumentParser:
    from sglang.srt.server_args import ServerArgs

    command = " ".join(usage.split()[:2])
    parser = argparse.ArgumentParser(prog=command, usage=usage, add_help=False)
    ServerArgs.add_cli_args(parser)
    return parser

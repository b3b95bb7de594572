"""The SGLang server's flags, which `run` and `plan` take beside their own: parser and defaults."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang.batch.upstream import ServerArgs
from sglang.batch.usage import BadUsage

SERVER_DEFAULTS = {"--schedule-policy": "blend", "--log-level": "warning"}
"""Flags of which a batch wants another default than a server."""


def with_defaults(server: Sequence[str]) -> list[str]:
    """Put a batch's defaults before the server's flags, where neither they nor a `--config` file set them."""
    given = {part.partition("=")[0] for part in server} | _config_keys(server)
    defaults = [
        part for flag, value in SERVER_DEFAULTS.items() if flag not in given for part in (flag, value)
    ]
    # The engine counts cached tokens anyway; this lets them through to the usage of each response.
    return [*defaults, "--enable-cache-report", *server]


def _config_keys(server: Sequence[str]) -> set[str]:
    """Flags that a `--config` file sets; none if it cannot be read, which upstream's parser will say."""
    import yaml

    if "--config" not in server[:-1]:
        return set()
    try:
        config: Any = yaml.safe_load(Path(server[list(server).index("--config") + 1]).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return set()
    return {f"--{key}".replace("_", "-") for key in config} if isinstance(config, dict) else set()


def parse_server_args(argv: list[str], *, usage: str) -> ServerArgs:
    """Parse flags of the server with upstream's parser.

    Args:
        argv: flags of the server and nothing else.
        usage: of the command that takes the flags, for error messages.

    Raises:
        SystemExit: the parser printed an error (2).
        BadUsage: the arguments parse and upstream refuses them.
        ModelUnavailable: `--model-path smollm2` cannot be resolved.
    """
    from sglang.batch.smollm2 import resolve_model_path
    from sglang.srt.blend.runtime.pdmux_config import refuse_pdmux_problems
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    load_plugins()
    if "--config" not in argv:
        # The same flags first under a usage line of our own: upstream's is 300 lines long and would
        # push its error message off the screen.
        _server_parser(usage).parse_args(argv)
    try:
        server_args: ServerArgs = prepare_server_args(argv)
        refuse_pdmux_problems(server_args)
    except (ValueError, AssertionError) as error:
        raise BadUsage(f"server flags: {error}") from error
    # Upstream's launchers, too, fill in the record before it is resolved.
    server_args.model_path = resolve_model_path(server_args.model_path)
    return server_args


def print_server_help(*, usage: str) -> None:
    """Print every flag of the server with its help, under the usage line of the command that takes them."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
    _server_parser(usage).print_help()


def _server_parser(usage: str) -> argparse.ArgumentParser:
    from sglang.srt.server_args import ServerArgs

    command = " ".join(usage.split()[:2])
    parser = argparse.ArgumentParser(prog=command, usage=usage, add_help=False)
    ServerArgs.add_cli_args(parser)
    return parser

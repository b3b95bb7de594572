"""`sglang-batch`: the command line of offline inference.

Exit codes: 0 every line answered; 1 some lines have an error record; 2 bad usage; 3 the engine failed; 4 the
disk failed or stayed full; 129 / 130 / 143 interrupted by SIGHUP / ctrl-C / SIGTERM. After 3 and above the
same command continues.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang.batch import validate
from sglang.batch.calibrate import command as calibrate
from sglang.batch.doctor import command as doctor
from sglang.batch.plan import arguments as plan_arguments
from sglang.batch.run import arguments as run_arguments
from sglang.batch.run.status import status
from sglang.batch.serve import arguments as serve_arguments
from sglang.batch.server_flags import parse_server_args, print_server_help
from sglang.batch.smollm2 import ModelUnavailable, resolve_model_path
from sglang.batch.usage import BAD_USAGE, BadUsage

WITHOUT_SERVER_FLAGS = ("model", "calibrate", "doctor", "status")
"""Commands that take no flags but their own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    _silence_imports()
    try:
        return _main(argv)
    except KeyboardInterrupt:
        print("sglang-batch: interrupted before anything was run", file=sys.stderr)
        return 130


def _main(argv: Sequence[str] | None) -> int:
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if rest and options.command in WITHOUT_SERVER_FLAGS:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if options.command == "model":
            print(resolve_model_path(options.name))
            return 0
        if options.command == "calibrate":
            return calibrate.run(options)
        if options.command == "doctor":
            return doctor.run(options)
        if options.command == "plan":
            checked_plan = plan_arguments.check_plan(options, rest)
            from sglang.batch.plan.command import plan

            return plan(checked_plan)
        if options.command == "validate":
            return validate.validate(options, rest)
        if options.command == "status":
            return status(options.output, check=options.check)
        if options.command == "serve":
            return _serve(options, rest)
        if options.help_server:
            print_server_help(usage=run_arguments.USAGE)
            return 0
        checked = run_arguments.check_run(options, rest)
        if checked.remote is not None:
            from sglang.batch.run.remote.command import run_remote

            return run_remote(checked, checked.remote)
        if checked.ray is not None:
            from sglang.batch.run.ray_replicas.command import run_ray

            server_args = parse_server_args(checked.server, usage=run_arguments.USAGE)
            return run_ray(checked, checked.ray, server_args)
        from sglang.batch.run.command import run, tuned

        checked = tuned(checked)
        return run(checked, parse_server_args(checked.server, usage=run_arguments.USAGE))
    except (BadUsage, ModelUnavailable) as error:
        print(f"sglang-batch {options.command}: error: {error}", file=sys.stderr)
        return BAD_USAGE


def _serve(options: argparse.Namespace, rest: list[str]) -> int:
    if options.help_server:
        print_server_help(usage=serve_arguments.USAGE)
        return 0
    checked = serve_arguments.check_serve(options, rest)
    from sglang.batch.serve.command import serve

    return serve(checked)


def _silence_imports() -> None:
    """Ignore Python's warnings in this process and its children, unless the user asks for them.

    Upstream's imports warn about kernels for hardware that is not there, once in every process. Python
    warnings say nothing about a batch; the log does, and `--log-level` is left alone.
    """
    if not sys.warnoptions:
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
        warnings.simplefilter("ignore")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sglang-batch", description="Offline inference with SGLang.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        usage=run_arguments.USAGE,
        help="answer a file of requests",
        description="Answer a file of requests in OpenAI Batch format. Every flag of the SGLang server is"
        " accepted too (--help-server lists them); --schedule-policy is blend unless given.",
        epilog="exit codes: 0 all lines answered, 1 some have an error record, 2 bad usage, 3 engine failed,"
        " 4 disk full, 130 interrupted; the same command continues after 3, 4 and 130, or a crash",
        allow_abbrev=False,
    )
    run_arguments.add_run_arguments(run)
    validate.add_validate_arguments(
        commands.add_parser(
            "validate",
            usage=validate.USAGE,
            help="check a file of requests without an engine",
            description="Check a file of requests in OpenAI Batch format and count what is wrong by error"
            " code. With --model-path, requests also go through its chat template and tokenizer.",
            epilog="exit codes: 0 all lines can be run, 1 some cannot, 2 bad usage",
            allow_abbrev=False,
        )
    )
    _add_status(commands)
    _add_serve(commands)
    plan = commands.add_parser(
        "plan",
        usage=plan_arguments.USAGE,
        help="tell what a file of requests will take on a GPU",
        description="Tell what a file of requests in OpenAI Batch format will take on a GPU, by simulation:"
        " time per schedule, sharing, memory, flags to use. Needs the model's config and tokenizer, neither"
        " weights nor a GPU. Server flags that change a schedule or a template are accepted too.",
        epilog="exit codes: 0 all lines planned, 1 some lines cannot be run, 2 bad usage, 3 a simulation"
        " failed, 130 interrupted",
        allow_abbrev=False,
    )
    plan_arguments.add_plan_arguments(plan)
    _add_model(commands)
    calibrate.add_calibrate_arguments(
        commands.add_parser(
            "calibrate",
            help="time this CPU for --blend-hardware",
            description=calibrate.DESCRIPTION,
            epilog=calibrate.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    _add_doctor(commands)
    return parser


def _add_model(commands: Any) -> None:
    model = commands.add_parser(
        "model",
        help="print the folder of a model, e.g. for `sglang serve`",
        description="Print where a model is. The name smollm2 is converted on first use, every other is"
        ' printed as it is: python -m sglang.launch_server --model-path "$(sglang-batch model smollm2)"',
        allow_abbrev=False,
    )
    model.add_argument("name", help="smollm2, or a path")


def _add_serve(commands: Any) -> None:
    serve_arguments.add_serve_arguments(
        commands.add_parser(
            "serve",
            usage=serve_arguments.USAGE,
            help="serve the OpenAI Batch API on your own engine",
            description=serve_arguments.DESCRIPTION,
            epilog=serve_arguments.EPILOG,
            allow_abbrev=False,
        )
    )


def _add_doctor(commands: Any) -> None:
    doctor.add_doctor_arguments(
        commands.add_parser(
            "doctor",
            help="tell what is missing here, without an engine",
            description=doctor.DESCRIPTION,
            epilog=doctor.EPILOG,
            allow_abbrev=False,
        )
    )


def _add_status(commands: Any) -> None:
    progress = commands.add_parser(
        "status",
        help="tell how far a run is, or how it ended",
        description="Tell how far the run with this output is, from its journal, while it runs or later.",
        allow_abbrev=False,
    )
    progress.add_argument("output", type=Path, help="the output of the run")
    progress.add_argument(
        "--check", action="store_true", help="check the journal, too; exit code 1 if it is broken"
    )


if __name__ == "__main__":
    sys.exit(main())

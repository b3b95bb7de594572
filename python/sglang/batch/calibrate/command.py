"""`sglang-batch calibrate`: a model's config in, this machine's hardware profile out."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from sglang.batch.calibrate.calibration import to_toml
from sglang.batch.calibrate.measure import DTYPES, layer_matrices, measure
from sglang.batch.smollm2 import NAME, resolve_model_path
from sglang.batch.usage import BadUsage, check_folder

BUSY = 0.5
"""Load average from which the figures are likely too low."""

DESCRIPTION = """\
Time this machine's CPU and write a hardware profile for the planner.

The planner calls a request compute-intensive or memory-intensive by comparing its FLOP with the KV cache
it reads. Which of the two takes longer depends on the machine: this command measures the rate of the
model's matrix products at several step sizes, in float32 and bfloat16, and the memory bandwidth, of which
the profile gets what products of one token reach. Pass the file to a server or a batch with
--blend-hardware, and serve with the dtype that is fastest here."""

EPILOG = """\
examples:
  sglang-batch calibrate                            print the table and the profile
  sglang-batch calibrate -o this-machine.toml       and keep it
  sglang-batch run ... --blend-hardware this-machine.toml

It takes about a minute on two cores. Run it on an idle machine. Accelerators have built-in profiles
(--blend-hardware auto finds them by name) and are not measured here.
exit codes: 0 measured, 2 bad usage"""


def add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE.toml", help="the profile (default: standard output)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output file that exists")
    parser.add_argument(
        "--model-path",
        default=NAME,
        metavar="MODEL",
        help="whose matrix shapes to time; only its config.json is read (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="whose rate goes into the profile: the one you serve with (default: auto, the fastest)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: PyTorch's, one per core")
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="the best of so many counts (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    """Measure, say what was measured, and write the profile; returns the exit code.

    Raises:
        BadUsage, ModelUnavailable: it cannot run as given.
    """
    _check(options)
    matrices, layers = layer_matrices(_config(resolve_model_path(options.model_path)))
    load = os.getloadavg()[0]
    calibration = measure(matrices, layers, threads=options.threads, rounds=options.rounds)
    dtype = calibration.fastest() if options.dtype == "auto" else options.dtype
    say(f"{calibration.machine}, shapes of {options.model_path}\n{calibration.table()}")
    if load > BUSY:
        say(f"other work was running (load average {load:.1f}): measure again when the machine is idle")
    name = options.output.stem if options.output else "measured"
    profile = calibration.profile(dtype, name)
    text = to_toml(profile, calibration.table())
    if options.output is None:
        print(text, end="")
        return 0
    options.output.write_text(text)
    say(
        f"profile written; {profile.flops / profile.bandwidth:.1f} FLOP for a byte. Use it:\n"
        f"  --blend-hardware {options.output} --dtype {dtype}"
    )
    return 0


def say(text: str) -> None:
    """Tell the user something, on stderr: stdout is the profile's."""
    print(f"sglang-batch calibrate: {text}", file=sys.stderr, flush=True)


def _check(options: argparse.Namespace) -> None:
    output = options.output
    for flag in ("threads", "rounds"):
        if (given := getattr(options, flag)) is not None and given < 1:
            raise BadUsage(f"--{flag} {given}: must be at least 1")
    if output is None:
        return
    if output.suffix != ".toml":
        raise BadUsage(f"--output {output}: --blend-hardware knows a file by its ending; name it *.toml")
    check_folder("--output", output)
    if output.exists() and not options.overwrite:
        raise BadUsage(f"--output {output}: exists; choose another name or pass --overwrite")


def _config(model_path: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model_path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadUsage(f"--model-path {model_path}: its config.json cannot be read ({reason})") from error

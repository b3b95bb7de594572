"""The command line of `sglang-batch plan`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang.batch.input.rows import row_format
from sglang.batch.input.source import Source, add_input, find_sources
from sglang.batch.media import MediaPolicy, add_media_arguments, media_policy
from sglang.batch.usage import BadUsage, check_folder
from sglang.srt.blend.core.cost.engines import ENGINE_FLAGS, engine_names, engines_on
from sglang.srt.blend.core.cost.hardware import Hardware, hardware_names, load_hardware

USAGE = "sglang-batch plan -i FILE --model-path MODEL --hardware GPU [options] [server flags]"

POLICIES = ("fcfs", "lpm", "dfs", "random", "blend")
"""Orders that can be compared: two of SGLang's policies, two orders of a file, and blend."""

DEFAULT_POLICIES = ("fcfs", "dfs", "blend")

SIMULATE_REQUESTS = 5_000
"""Requests of the file that are simulated at most."""


@dataclass(frozen=True)
class PlanArguments:
    """The checked flags of `sglang-batch plan`.

    Attributes:
        hardware_name: the profile as the user named it, which is how simulations load it again.
        output_tokens: assumed length of an answer; None for as long as max_tokens allows.
        tensor_parallel: GPUs that share the model; 0 for as few as hold it.
        simulate_requests: requests of the excerpt that is simulated of a larger pool; 0 simulates nothing.
        jobs: simulations at a time.
        media: what requests may name beside data URLs.
        json, chart: where the report and its picture go; None for nowhere.
        pdmux_config: where a config of PD multiplexing for this pool goes; None for nowhere.
        server: flags for the server's own parser.
    """

    inputs: tuple[Source, ...]
    hardware: Hardware
    hardware_name: str
    output_tokens: int | None
    tensor_parallel: int
    policies: tuple[str, ...]
    engines: tuple[str, ...]
    simulate_requests: int
    jobs: int
    media: MediaPolicy
    json: Path | None
    chart: Path | None
    pdmux_config: Path | None
    quiet: bool
    server: list[str]


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that are `plan`'s own."""
    add_input(parser)
    parser.add_argument(
        "--hardware",
        metavar="GPU",
        help=f"{', '.join(hardware_names())}, or a .toml file with flops, bandwidth and memory",
    )
    parser.add_argument(
        "--tp-size",
        "--tp",
        dest="tensor_parallel",
        type=int,
        default=0,
        metavar="N",
        help="GPUs that share the model (default: as few as hold it)",
    )
    parser.add_argument(
        "--output-tokens",
        type=int,
        metavar="N",
        help="assumed length of an answer where the request does not fix it, less where max_tokens is less"
        " (default: as long as max_tokens allows; see the report for requests without it)",
    )
    _add_simulation_arguments(parser)
    add_media_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result as JSON too")
    parser.add_argument(
        "--chart",
        type=Path,
        metavar="FILE",
        help="draw simulated compute and memory use over time, .png or .html (needs matplotlib)",
    )
    parser.add_argument(
        "--write-pdmux-config",
        type=Path,
        dest="pdmux_config",
        metavar="FILE",
        help="write the division of the GPU that suits this pool under --enable-pdmux, for SGLang's"
        " --pdmux-config-path; the pdmux engine is simulated with it in any case",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _add_simulation_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policies",
        default=",".join(DEFAULT_POLICIES),
        metavar="LIST",
        help=f"orders to simulate, of {', '.join(POLICIES)} (default: %(default)s)",
    )
    parser.add_argument(
        "--engines",
        metavar="LIST",
        help="engines to simulate, of "
        + ", ".join(f"{name} ({flags})" for name, flags in ENGINE_FLAGS.items())
        + " (default: all that the GPU has)",
    )
    parser.add_argument(
        "--simulate-requests",
        type=int,
        default=SIMULATE_REQUESTS,
        metavar="N",
        help="simulate an excerpt of whole prefix groups where there are more requests; 0 gives only the"
        " practical optimum, a bound (default: %(default)s)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="simulations at a time (default: %(default)s)",
    )


def check_plan(options: argparse.Namespace, server: Sequence[str]) -> PlanArguments:
    """Check what can be checked before anything is read.

    Args:
        server: flags that the parser did not know.

    Raises:
        BadUsage: something is missing, unknown, unreadable or in the way.
    """
    for flag in ("input", "hardware"):
        if getattr(options, flag) is None:
            raise BadUsage(f"--{flag} is required")
    try:
        hardware = load_hardware(options.hardware)
    except ValueError as error:
        raise BadUsage(f"--hardware: {error}") from None
    for flag, minimum in (
        ("output_tokens", 1),
        ("tensor_parallel", 0),
        ("simulate_requests", 0),
        ("jobs", 1),
    ):
        value = getattr(options, flag)
        if value is not None and value < minimum:
            name = "tp-size" if flag == "tensor_parallel" else flag.replace("_", "-")
            raise BadUsage(f"--{name} {value}: must be at least {minimum}")
    sources = find_sources(options.input, rows=row_format(options))
    if any(source.standard_input for source in sources):
        raise BadUsage("--input -: a plan does not read standard input; name a file")
    for flag, path in (
        ("--json", options.json),
        ("--chart", options.chart),
        ("--write-pdmux-config", options.pdmux_config),
    ):
        check_folder(flag, path)
    engines = engines_on(hardware)
    if "pdmux" not in engines and (options.pdmux_config or "pdmux" in (options.engines or "")):
        raise BadUsage(
            f"--hardware {options.hardware}: SGLang's PD multiplexing does not divide it; name an NVIDIA GPU"
            " of compute capability 6 to 9, or leave pdmux out of --engines and drop --write-pdmux-config"
        )
    if options.chart is not None:
        _check_chart(options.chart, simulated=options.simulate_requests > 0)
    return PlanArguments(
        inputs=sources,
        hardware=hardware,
        hardware_name=options.hardware,
        output_tokens=options.output_tokens,
        tensor_parallel=options.tensor_parallel,
        policies=_choices("--policies", options.policies, POLICIES),
        engines=_choices("--engines", options.engines or ",".join(engines), engine_names()),
        simulate_requests=options.simulate_requests,
        jobs=options.jobs,
        media=media_policy(options),
        json=options.json,
        chart=options.chart,
        pdmux_config=options.pdmux_config,
        quiet=options.quiet,
        server=list(server),
    )


def _choices(flag: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Split a list of names at its commas; each name counts once."""
    chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise BadUsage(f"{flag} {text!r}: choose one or more of {', '.join(known)}")
    return chosen


def _check_chart(path: Path, *, simulated: bool) -> None:
    """Check that a chart can be drawn, before minutes of simulation that end in none."""
    if path.suffix not in (".png", ".html"):
        raise BadUsage(f"--chart {path}: the name must end in .png or .html")
    if not simulated:
        raise BadUsage(f"--chart {path}: only simulations have something to draw; drop --simulate-requests 0")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise BadUsage(f"--chart {path}: needs matplotlib; pip install matplotlib") from None

"""Time the kernels of a decoder on this GPU, and hold the step-time model against them.

Measures, for one layer of a model in bfloat16: matrix products by rows, decode attention over a paged KV
cache, prefill attention, products and decode attention at once (on the whole GPU, and on parts of its SMs as
SGLang's PD multiplexing divides it), and all-reduces between all GPUs of the machine. It needs PyTorch,
Triton and some minutes, no SGLang and no model.

Writes into --out: measurements.csv, a row for each measurement; the hardware profile that fits them, as
--blend-hardware and `sglang-batch plan --hardware` take it; error.txt, how far the model is from the
measurements with the built-in profile (if there is one) and with the new one.

examples:
  python -m benchmark.gpu                                  everything, for a layer of Llama-3-8B
  python -m benchmark.gpu --only gemm,decode --out mine    two kinds
  python -m benchmark.gpu --model-path MODEL/config.json   the layer of your model
  python -m benchmark.gpu --device cpu --out trial         try the kit itself; its figures mean nothing

Without SGLang installed: PYTHONPATH=python:. python -m benchmark.gpu
exit codes: 0 measured, 2 bad usage or no GPU, 3 a kernel computes something wrong
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmark.gpu import all_reduce, decode, gemm, prefill, together
from benchmark.gpu.error import error_table
from benchmark.gpu.green_contexts import NotDivided
from benchmark.gpu.layer import LLAMA_3_8B, TINY, Layer, read_config
from benchmark.gpu.machine import Machine, find_machine
from benchmark.gpu.points import Point, write_points
from benchmark.gpu.profile import datasheet, fit

from sglang.batch.calibrate.calibration import to_toml
from sglang.batch.usage import BAD_USAGE, BadUsage

WRONG_KERNEL = 3
"""Exit code where a kernel computes something wrong."""

KINDS = ("gemm", "decode", "prefill", "together", "all-reduce")
"""What can be measured, in this order."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured of each kind.

    Attributes:
        rows: of GEMMs.
        pools: requests that decode, and tokens of each.
        chunks: new and cached tokens of a prefill.
        pairs: rows of GEMMs, requests that decode beside them, and tokens of each.
        reduced: rows of hidden states.
        least: seconds that what runs at once takes at least.
    """

    rows: Sequence[int]
    pools: Sequence[tuple[int, int]]
    chunks: Sequence[tuple[int, int]]
    pairs: Sequence[together.Pair]
    reduced: Sequence[int]
    least: float


FULL = Sizes(
    rows=(1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192),
    pools=tuple((n, length) for length in (512, 2048, 8192, 32768) for n in (1, 4, 16, 64, 256, 1024)),
    chunks=((512, 0), (1024, 0), (2048, 0), (4096, 0), (8192, 0), (512, 7680), (2048, 6144), (2048, 30720)),
    pairs=((512, 64, 2048), (2048, 64, 2048), (2048, 256, 2048), (8192, 64, 8192), (8192, 256, 2048)),
    reduced=(1, 16, 128, 512, 2048, 8192),
    least=together.LEAST_SECONDS,
)
TRIAL = Sizes(
    rows=(1, 16, 128),
    pools=((1, 64), (4, 64), (4, 256)),
    chunks=((32, 0), (128, 0), (32, 96)),
    pairs=((64, 4, 64),),
    reduced=(1, 64),
    least=0.0,
)


def main(argv: list[str] | None = None) -> int:
    try:
        options = parse(argv)
        return run(options, find_machine(options.device))
    except (BadUsage, decode.WrongKernel) as error:
        print(f"benchmark.gpu: error: {error}", file=sys.stderr)
        return BAD_USAGE if isinstance(error, BadUsage) else WRONG_KERNEL


def parse(argv: list[str] | None) -> argparse.Namespace:
    description, _, examples = (__doc__ or "").partition("\nexamples:")
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.gpu",
        description=description,
        epilog=f"examples:{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", default=",".join(KINDS), metavar="KINDS", help=f"of {','.join(KINDS)} (default: all)"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-measurements"), metavar="DIR")
    parser.add_argument(
        "--model-path", metavar="MODEL", help="a config.json or its folder (default: Llama-3-8B's sizes)"
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a trial of the kit, tiny sizes"
    )
    options = parser.parse_args(argv)
    options.only = tuple(options.only.split(","))
    for kind in options.only:
        if kind not in KINDS:
            raise BadUsage(f"--only {kind}: choose among {', '.join(KINDS)}")
    if options.out.exists() and not options.out.is_dir():
        raise BadUsage(f"--out {options.out}: is a file; name a folder")
    return options


def run(options: argparse.Namespace, machine: Machine) -> int:
    """Measure, fit, write and tell; returns the exit code.

    Raises:
        BadUsage, WrongKernel: nothing can be said.
    """
    default = LLAMA_3_8B if machine.is_gpu else TINY
    config = read_config(options.model_path) if options.model_path else default
    layer = Layer.of(config, machine.dtype.itemsize)
    options.out.mkdir(parents=True, exist_ok=True)
    if not machine.is_gpu:
        torch.set_num_threads(1)  # tiny work waits for threads more than it computes
    points: list[Point] = []
    for point in measure(options.only, machine, layer, FULL if machine.is_gpu else TRIAL):
        say(f"{1e3 * point.seconds:10.4f} ms  {point}")
        points.append(point)
        write_points(options.out / "measurements.csv", points)
    if not points:
        raise BadUsage(f"--only {','.join(options.only)}: nothing of it can be measured here")
    write_profile(options.out, points, layer, machine)
    return 0


def measure(kinds: Sequence[str], machine: Machine, layer: Layer, sizes: Sizes) -> Iterator[Point]:
    """Measure some of `KINDS`; what cannot be measured here is said.

    Raises:
        WrongKernel: a kernel computes something wrong.
    """
    if machine.is_gpu and ("decode" in kinds or "together" in kinds):
        say(f"decode kernel: within {decode.check(machine, layer):.1e} of plain PyTorch")
    if "prefill" in kinds:
        say(f"prefill kernel: within {prefill.check(machine, layer):.1e} of plain PyTorch")
    steps: dict[str, Callable[[], Iterator[Point]]] = {
        "gemm": lambda: gemm.measure(machine, layer, sizes.rows),
        "decode": lambda: decode.measure(machine, layer, sizes.pools),
        "prefill": lambda: prefill.measure(machine, layer, sizes.chunks),
        "together": lambda: _together(machine, layer, sizes),
        "all-reduce": lambda: all_reduce.measure(machine, layer, sizes.reduced),
    }
    for kind in KINDS:
        if kind in kinds:
            yield from steps[kind]()
    if "all-reduce" in kinds and machine.count < 2:
        say("no all-reduce: this machine has one GPU")


def _together(machine: Machine, layer: Layer, sizes: Sizes) -> Iterator[Point]:
    yield from together.measure(machine, layer, sizes.pairs, least=sizes.least)
    try:
        yield from together.measure_divided(machine, layer, sizes.pairs, least=sizes.least)
    except NotDivided as reason:
        say(f"no division of the SMs: {reason}")


def write_profile(out: Path, points: Sequence[Point], layer: Layer, machine: Machine) -> None:
    """Fit the profile and tell how far the model is from the measurements.

    Raises:
        BadUsage: too little was measured for a profile.
    """
    name = "-".join(["measured", *machine.name.lower().split()])
    fitted = fit(points, layer, machine, name)
    known = datasheet(machine)
    table = error_table(points, layer, [*([known] if known else []), fitted])
    (out / "error.txt").write_text(table + "\n")
    path = out / f"{name}.toml"
    path.write_text(to_toml(fitted, table, what=f"{machine.name}, timed by python -m benchmark.gpu"))
    print(table)
    say(f"{path} is for --blend-hardware, and for sglang-batch plan --hardware")
    if not machine.is_gpu:
        say("this was a trial on a CPU: no figure says anything about a GPU")


def say(text: str) -> None:
    print(f"benchmark.gpu: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

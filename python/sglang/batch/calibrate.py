"""`sglang-batch calibrate`: time this machine's CPU and write what the cost model needs to know of it.

Density compares two rates, FLOP/s and bytes/s (paper 4.1). For accelerators they come from datasheets
(`core/hardware.toml`); a CPU's depend on instruction sets, cores and memory channels that no datasheet
combines, so they are timed: the matrix products of the model's layers, and reading memory that no cache
holds. Every figure is the best of several rounds: other work on the machine can only make one slower.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sglang.batch.arguments import BadUsage
from sglang.batch.smollm2 import NAME, resolve_model_path
from sglang.srt.blend.core.cost.hardware import Hardware

if TYPE_CHECKING:  # at run time inside functions: the command line's --help does not wait for it
    import torch

DTYPES = ("float32", "bfloat16")
TOKENS = (1, 8, 32, 128, 512, 2048)
"""Rows of the products: tokens of one step."""

WEIGHTS = 512 << 20
"""Bytes of weights at most; fewer layers than the model has are timed when theirs would be more."""

READ = 1 << 30
"""Bytes that the bandwidth is timed with, less on machines with little memory."""

BUSY = 0.5
"""Load average from which the figures are likely too low."""

Matrix = tuple[int, int]
"""Features in, features out."""

_LONG = 1.0
"""Seconds from which a measurement is good to a few percent the first time."""

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


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        tokens: rows of the products that were timed.
        gemm: FLOP/s by dtype, one value for each of `tokens`.
        bandwidth: bytes/s of memory reads, one after the other.
        memory: bytes this process may use.
        machine: CPU and threads, in words.
    """

    tokens: tuple[int, ...]
    gemm: Mapping[str, Sequence[float]]
    bandwidth: float
    memory: int
    machine: str

    def fastest(self) -> str:
        """The dtype with the highest rate at any step size."""
        return max(self.gemm, key=lambda dtype: max(self.gemm[dtype]))

    def decode_bandwidth(self, dtype: str) -> float:
        """Bytes/s at which a decoding step reads weights: what one token's products reach.

        A CPU streams faster than it can use what it reads, and KV caches are read no faster than weights.
        """
        itemsize = {"float32": 4, "bfloat16": 2}[dtype]
        rate = self.gemm[dtype][self.tokens.index(1)]  # two FLOP for each element of the weights
        return min(self.bandwidth, rate / 2 * itemsize)

    def profile(self, dtype: str, name: str) -> Hardware:
        """The planner's profile. The rates are reached ones, so nothing is taken off for efficiency."""
        return Hardware(
            name=name,
            flops=max(self.gemm[dtype]),
            bandwidth=self.decode_bandwidth(dtype),
            memory=float(self.memory),
            gemm_efficiency=1.0,
            bandwidth_efficiency=1.0,
            measured=True,
            source=f"measured: {dtype} GEMMs, and their reads with one token, {self.machine}",
        )

    def table(self) -> str:
        """GFLOP/s by tokens per step and dtype, and the bandwidth."""
        lines = [f"{'tokens in a step':<18}" + "".join(f"{dtype:>12}" for dtype in self.gemm)]
        for row, tokens in enumerate(self.tokens):
            rates = "".join(f"{self.gemm[dtype][row] / 1e9:>12,.0f}" for dtype in self.gemm)
            lines.append(f"{tokens:<18,}{rates}  GFLOP/s")
        lines.append(f"{'memory reads':<18}{self.bandwidth / 1e9:>12,.1f}  GB/s")
        return "\n".join(lines)


def run(options: argparse.Namespace) -> int:
    """The command; returns its exit code.

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
    """A message for the user, on stderr: stdout is the profile's."""
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
    if not output.parent.is_dir():
        raise BadUsage(f"--output {output}: folder {output.parent} does not exist; create it first")
    if output.exists() and not options.overwrite:
        raise BadUsage(f"--output {output}: exists; choose another name or pass --overwrite")


def _config(model_path: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model_path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadUsage(f"--model-path {model_path}: its config.json cannot be read ({reason})") from error


def layer_matrices(config: Any) -> tuple[list[Matrix], int]:
    """Matrices of one decoder layer as SGLang multiplies them (q, k, v and gate, up are one each), and how
    many layers there are.

    Args:
        config: a Hugging Face config. Experts count as one dense MLP of their width.

    Raises:
        BadUsage: the config is not a decoder's.
    """
    text = config.get_text_config()
    try:
        hidden, heads, layers = text.hidden_size, text.num_attention_heads, text.num_hidden_layers
    except AttributeError as error:
        raise BadUsage(f"--model-path: its config.json is not a decoder's ({error})") from error
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head = getattr(text, "head_dim", None) or hidden // heads
    mlp = getattr(text, "intermediate_size", None) or 4 * hidden
    projections = [(hidden, (heads + 2 * kv_heads) * head), (heads * head, hidden)]
    return [*projections, (hidden, 2 * mlp), (mlp, hidden)], layers


def measure(
    matrices: Sequence[Matrix],
    layers: int,
    *,
    rounds: int,
    threads: int | None = None,
    tokens: Sequence[int] = TOKENS,
) -> Calibration:
    """Time everything, with a progress bar where somebody sees it.

    Args:
        threads: of PyTorch; None leaves them as they are.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    gemm: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    memory = _memory()
    with torch.inference_mode(), tqdm(total=len(DTYPES) * len(tokens) + 1, disable=None) as bar:
        for dtype, rates in gemm.items():
            bar.set_description(f"{dtype} GEMM")
            for rate in gemm_rates(matrices, layers, getattr(torch, dtype), rounds=rounds, tokens=tokens):
                rates.append(rate)
                bar.update()
        bar.set_description("memory reads")
        bandwidth = read_bandwidth(min(READ, memory // 8), rounds=rounds)
        bar.update()
    count = torch.get_num_threads()
    machine = f"{_cpu_name()}, {count} thread{'s' if count > 1 else ''}"
    return Calibration(tuple(tokens), gemm, bandwidth, memory, machine)


def gemm_rates(
    matrices: Sequence[Matrix],
    layers: int,
    dtype: torch.dtype,
    *,
    rounds: int,
    tokens: Sequence[int],
) -> Iterator[float]:
    """FLOP/s of all layers' products, one value for each number of tokens.

    Layers have weights of their own, as in a forward pass: with few tokens, reading them is what counts.
    """
    import torch

    from sglang.srt.platforms import current_platform

    layer_bytes = sum(a * b for a, b in matrices) * dtype.itemsize
    copies = max(1, min(layers, WEIGHTS // layer_bytes))
    product = getattr(current_platform, "product", _row_major_product)
    weights = [[product(torch.randn(b, a, dtype=dtype)) for a, b in matrices] for _ in range(copies)]
    flop_per_token = 2.0 * copies * sum(a * b for a, b in matrices)
    for count in tokens:
        inputs = [torch.randn(count, a, dtype=dtype) for a, _ in matrices]

        def forward(inputs: list[torch.Tensor] = inputs) -> None:
            for layer in weights:
                for x, multiply in zip(inputs, layer, strict=True):
                    multiply(x)

        yield flop_per_token * count / best_seconds(forward, rounds)


def _row_major_product(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    return lambda x: torch.nn.functional.linear(x, weight)


def read_bandwidth(size: int, *, rounds: int) -> float:
    """Bytes/s of reading `size` bytes with all threads."""
    import torch

    data = torch.ones(max(1, size // 4), dtype=torch.float32)
    return data.nbytes / best_seconds(data.sum, rounds)


def best_seconds(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of `rounds`, after one that warms up.

    What takes long is not repeated: bfloat16 on a CPU without instructions for it would take many minutes.
    """

    def once() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    first = once()
    return first if first > _LONG else min(once() for _ in range(rounds))


def to_toml(profile: Hardware, table: str) -> str:
    """The file that `core.hardware.load_hardware` reads, with the measurements as a comment."""
    comment = "".join(f"#   {line}\n" for line in table.splitlines())
    return (
        f"# Hardware profile of this machine's CPU, timed by sglang-batch calibrate.\n{comment}"
        f"flops = {profile.flops:.4g}\n"
        f"bandwidth = {profile.bandwidth:.4g}\n"
        f"memory = {profile.memory:.4g}\n"
        f"gemm_efficiency = {profile.gemm_efficiency}\n"
        f"bandwidth_efficiency = {profile.bandwidth_efficiency}\n"
        "measured = true\n"
        f"source = {json.dumps(profile.source)}\n"
    )


def _memory() -> int:
    """Bytes this process may use: a container's limit counts."""
    from sglang.srt.platforms import current_platform

    return int(current_platform.get_device_total_memory())


def _cpu_name() -> str:
    import torch

    name = torch.cpu.get_capabilities().get("cpu_name")
    return str(name) if name else f"{os.uname().machine} CPU"

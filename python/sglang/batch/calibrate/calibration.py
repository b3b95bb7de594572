"""What was measured of a CPU, as a table for people and as a hardware profile for the planner."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sglang.srt.blend.core.cost.hardware import Hardware


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        tokens: rows of the products that were timed, 1 among them.
        gemm: FLOP/s by dtype, one value for each of `tokens`.
        bandwidth: bytes/s of memory reads, one after the other.
        memory: bytes that this process may use.
        machine: CPU and threads, in words.
    """

    tokens: tuple[int, ...]
    gemm: Mapping[str, Sequence[float]]
    bandwidth: float
    memory: int
    machine: str

    def fastest(self) -> str:
        """Name the dtype with the highest rate at any step size."""
        return max(self.gemm, key=lambda dtype: max(self.gemm[dtype]))

    def decode_bandwidth(self, dtype: str) -> float:
        """Bytes/s at which a decoding step reads weights, which is what one token's products reach.

        A CPU streams faster than it can use what it reads, and KV caches are read no faster than weights.
        """
        itemsize = {"float32": 4, "bfloat16": 2}[dtype]
        rate = self.gemm[dtype][self.tokens.index(1)]  # two FLOP for each element of the weights
        return min(self.bandwidth, rate / 2 * itemsize)

    def profile(self, dtype: str, name: str) -> Hardware:
        """Make the planner's profile. The rates are reached ones: nothing is taken off for efficiency."""
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
        """Write GFLOP/s by tokens per step and dtype, and the bandwidth in GB/s."""
        lines = [f"{'tokens in a step':<18}" + "".join(f"{dtype:>12}" for dtype in self.gemm)]
        for row, tokens in enumerate(self.tokens):
            rates = "".join(f"{self.gemm[dtype][row] / 1e9:>12,.0f}" for dtype in self.gemm)
            lines.append(f"{tokens:<18,}{rates}  GFLOP/s")
        lines.append(f"{'memory reads':<18}{self.bandwidth / 1e9:>12,.1f}  GB/s")
        return "\n".join(lines)


def to_toml(
    profile: Hardware, table: str, *, what: str = "this machine's CPU, timed by sglang-batch calibrate"
) -> str:
    """Write the file that `load_hardware` reads, with the measurements as a comment.

    Args:
        what: ends the first line, which says whose profile it is and where it comes from.
    """
    comment = "".join(f"#   {line}".rstrip() + "\n" for line in table.splitlines())
    optional = "".join(
        f"{name} = {value:.4g}\n"
        for name in ("multiprocessors", "compute_capability", "link", "sm_bandwidth")
        if (value := getattr(profile, name))
    )
    assumed = "".join(f"{name} = {value:.4g}\n" for name, value in profile.assumed.items())
    return (
        f"# Hardware profile of {what}.\n{comment}"
        f"flops = {profile.flops:.4g}\n"
        f"bandwidth = {profile.bandwidth:.4g}\n"
        f"memory = {profile.memory:.4g}\n"
        f"gemm_efficiency = {profile.gemm_efficiency:.4g}\n"
        f"bandwidth_efficiency = {profile.bandwidth_efficiency:.4g}\n"
        f"{optional}"
        "measured = true\n"
        f"source = {json.dumps(profile.source)}\n"
        + (f"\n[assumed]  # measured here, in place of gpu_kernels.toml\n{assumed}" if assumed else "")
    )

"""Hardware profiles: the two rooflines that density compares (paper 4.1), from one data file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from sglang.srt.blend.core.cost.gemm_profile import kernel_figures


@dataclass(frozen=True, slots=True)
class Hardware:
    """Rates and size of one accelerator, or of several acting as one.

    >>> a100 = load_hardware("a100-80gb")
    >>> f"{a100.flops / 1e12:.0f} TFLOP/s, {a100.bandwidth / 1e9:.0f} GB/s"
    '312 TFLOP/s, 2039 GB/s'

    Raises:
        ValueError: a rate or the memory is not positive, an efficiency outside (0, 1], or an assumption
            unknown.

    Attributes:
        name: of the profile, or what the file calls it.
        flops: peak dense FLOP/s at the compute dtype.
        bandwidth: peak memory bandwidth, bytes/s.
        memory: device memory, bytes.
        gemm_efficiency: share of `flops` that large GEMMs reach, in (0, 1].
        bandwidth_efficiency: share of `bandwidth` that decode attention reaches, in (0, 1].
        multiprocessors: streaming multiprocessors (SMs) of an NVIDIA GPU, which its datasheet or architecture
            paper gives; 0 where they cannot be divided or are not known.
        compute_capability: of an NVIDIA GPU, as in 9.0; 0 where not known.
        link: bytes/s in one direction between GPUs of a node; 0 takes `links` of gpu_kernels.toml.
        sm_bandwidth: bytes/s that one SM reads where more SMs add little; 0 takes that of gpu_kernels.toml.
        assumed: what was measured in place of the assumptions in gpu_kernels.toml, by their names there.
        measured: the figures were timed on the machine, not read from a datasheet.
        source: where the figures come from.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    gemm_efficiency: float = 0.75
    bandwidth_efficiency: float = 0.85
    multiprocessors: int = 0
    compute_capability: float = 0.0
    link: float = 0.0
    sm_bandwidth: float = 0.0
    assumed: Mapping[str, float] = field(default_factory=dict, hash=False)
    measured: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("flops", "bandwidth", "memory"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"hardware profile {self.name!r}: {name} must be positive, got {value!r}")
        for name in ("gemm_efficiency", "bandwidth_efficiency"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"hardware profile {self.name!r}: {name} must be in (0, 1]")
        known = kernel_figures()["assumed"]
        for name in self.assumed:
            if name not in known:
                raise ValueError(
                    f"hardware profile {self.name!r}: assumed {name!r} is unknown; "
                    f"choose among {', '.join(known)}"
                )


@cache
def _datasheets() -> dict[str, dict[str, Any]]:
    return tomllib.loads(resources.files(__package__).joinpath("hardware.toml").read_text())


def hardware_names() -> list[str]:
    """Names of the built-in profiles, in file order."""
    return list(_datasheets())


def known_names(profile: str) -> tuple[str, ...]:
    """A built-in profile's name and its aliases, as drivers report them."""
    return (profile, *_datasheets()[profile].get("aliases", ()))


def _profile(name: str, entry: dict[str, Any]) -> Hardware:
    fields = {key: value for key, value in entry.items() if key != "aliases"}
    try:
        return Hardware(name=name, **fields)
    except TypeError as error:
        raise ValueError(f"hardware profile {name!r}: {error}") from None


def load_hardware(name: str) -> Hardware:
    """Find a profile by name, by the device name a driver reports, or in a TOML file of one's own.

    A file holds the keys of `Hardware` (flops, bandwidth, memory, ...) at its top level; that is how a
    measured profile is passed.

    Args:
        name: a built-in profile's name or alias, upper case or lower, or a path that ends in .toml.

    Raises:
        ValueError: unknown name, or a file with missing or impossible entries.

    >>> load_hardware("NVIDIA H100 80GB HBM3").name
    'h100'
    """
    if name.endswith(".toml"):
        path = Path(name)
        try:
            entry = tomllib.loads(path.read_text())
        except OSError as error:
            raise ValueError(f"hardware profile {name!r}: {error.strerror}") from None
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"hardware profile {name!r}: not TOML: {error}") from None
        return _profile(entry.pop("name", path.stem), entry)
    for known, entry in _datasheets().items():
        if name.lower() in (alias.lower() for alias in known_names(known)):
            return _profile(known, entry)
    raise ValueError(
        f"hardware profile {name!r}: unknown; choose one of {', '.join(hardware_names())}, "
        "or the path of a .toml file with flops, bandwidth and memory"
    )

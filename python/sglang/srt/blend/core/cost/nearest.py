"""The profile for a device that has none of its own: that of its nearest relative."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sglang.srt.blend.core.cost.hardware import Hardware, hardware_names, known_names, load_hardware

_ANOTHER_GENERATION = 3.0
"""What a step of a compute capability's major number counts for, in factors of e of any size."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a driver says of an accelerator; 0 where it says nothing.

    Attributes:
        name: as reported.
        memory: bytes.
        multiprocessors: SMs of an NVIDIA GPU.
        compute_capability: of an NVIDIA GPU, as in 9.0.
        bandwidth: peak of its memory, bytes/s.
    """

    name: str
    memory: float = 0.0
    multiprocessors: int = 0
    compute_capability: float = 0.0
    bandwidth: float = 0.0


def hardware_of(device: Device) -> tuple[Hardware, str]:
    """Find the profile of a device, or the nearest one.

    Names come first: of the profiles whose model ("h100", "4090", "mi300x") is in the device's name, the one
    with the most words of it. Otherwise the nearest in generation, memory, size and bandwidth, as far as the
    driver tells them.

    Returns:
        The profile, and in what it is the nearest; "" for the device's own.

    >>> hardware_of(Device("NVIDIA A100-SXM-64GB", memory=64e9))
    ... # doctest: +ELLIPSIS
    (Hardware(name='a100-80gb', ...), 'name')
    """
    try:
        return load_hardware(device.name), ""
    except ValueError:
        accelerators = [load_hardware(name) for name in hardware_names() if name != "cpu"]
    words = _words(device.name)
    shared = {one.name: _shared(words, one.name) for one in accelerators}
    most = max(shared.values())
    if most:
        accelerators = [one for one in accelerators if shared[one.name] == most]
    nearest = min(accelerators, key=lambda one: _distance(device, one))
    return nearest, "name" if most else "generation, memory and size"


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))


def _shared(words: set[str], profile: str) -> int:
    """Words of a device's name that a profile has in one of its names; 0 unless its model is among them."""
    best = 0
    for name in known_names(profile):
        common = words & _words(name)
        if _words(profile) & common and any(_is_model(word) for word in common):
            best = max(best, len(common))
    return best


def _is_model(word: str) -> bool:
    """Whether a word names a model: a letter or more and a number, or a number of four digits."""
    return bool(re.fullmatch(r"(?!.*\dgb$)[a-z]+\d+[a-z]*|\d{4}", word))


def _distance(device: Device, one: Hardware) -> float:
    """How unlike two accelerators are, in factors of e."""
    generations = abs(int(device.compute_capability) - int(one.compute_capability))
    far = _ANOTHER_GENERATION * generations
    for size in ("memory", "multiprocessors", "bandwidth"):
        told, known = getattr(device, size), getattr(one, size)
        if told and known:
            far += abs(math.log(told) - math.log(known))
    return far

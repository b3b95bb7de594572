"""Which hardware profile the planner's cost model gets."""

from __future__ import annotations

import logging
from typing import Any

import torch

from sglang.srt.blend.core.cost.hardware import Hardware, load_hardware
from sglang.srt.blend.core.cost.nearest import Device, hardware_of
from sglang.srt.blend.runtime.arguments import flag

logger = logging.getLogger(__name__)


def find_hardware(name: str, device: str) -> Hardware:
    """The profile called `name`; ``auto`` looks at the device, and takes the nearest where it has none."""
    if name != "auto":
        return load_hardware(name)
    kind = str(device).split(":", 1)[0]
    if kind == "cpu":
        return load_hardware("cpu")
    reported = _device(kind)
    hardware, nearest = hardware_of(reported)
    if nearest:
        logger.warning(
            "blend: no hardware profile for %r; %s is nearest in %s, and is taken until steps say otherwise. "
            "%s names another one, or a file of your own",
            reported.name,
            hardware.name,
            nearest,
            flag("hardware"),
        )
    return hardware


def _device(kind: str) -> Device:
    """What PyTorch says of an accelerator; backends differ in how much that is."""
    module = torch.get_device_module(kind)
    told: Any = module.get_device_properties(0) if hasattr(module, "get_device_properties") else None
    nvidia = kind == "cuda" and torch.version.hip is None  # ROCm numbers its generations otherwise
    clock, width = (getattr(told, name, 0) for name in ("memory_clock_rate", "memory_bus_width"))
    return Device(
        name=str(module.get_device_name()),
        memory=float(getattr(told, "total_memory", 0)),
        multiprocessors=told.multi_processor_count if nvidia else 0,
        compute_capability=told.major + told.minor / 10 if nvidia else 0.0,
        bandwidth=2e3 * clock * width / 8,  # kHz at double data rate, bits
    )

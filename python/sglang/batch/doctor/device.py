"""What SGLang would run on here, and by which hardware profile the planner would judge it."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import Any

from sglang.batch.doctor.finding import Finding
from sglang.srt.blend.core.cost.nearest import Device, hardware_of


def device() -> list[Finding]:
    """Find platform, device, profile and, on a CPU, the kernels."""
    from sglang.srt.platforms import current_platform

    name = device_name(current_platform.device_type)
    chosen = "SGLANG_PLATFORM" if os.environ.get("SGLANG_PLATFORM") else "what was found here"
    found = [
        Finding("device", "platform", f"{type(current_platform).__name__}, by {chosen}"),
        Finding("device", "device", name),
        profile(current_platform.device_type, name, _memory(current_platform)),
    ]
    kernel_state = getattr(current_platform, "kernel_state", None)
    return found if kernel_state is None else found + kernels(kernel_state())


def device_name(kind: str) -> str:
    """Name the device as its driver does, or the CPU as the kernel does."""
    if kind != "cpu":
        import torch

        return str(torch.get_device_module(kind).get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def profile(kind: str, name: str, memory: float) -> Finding:
    """Tell which profile `--blend-hardware auto` takes, and why.

    Args:
        kind: of the device, as PyTorch calls it.
        name: of the device, as its driver calls it.
        memory: bytes of the device, 0 where they are unknown.
    """
    if kind == "cpu":
        text = "cpu: every CPU has this one; `sglang-batch calibrate` times this machine"
        return Finding("device", "profile", text)
    found, nearest = hardware_of(Device(name, memory=memory))
    if nearest:
        text = f"{found.name}: {name!r} has none, this is the nearest in {nearest}; steps will correct it"
        return Finding("device", "profile", text)
    return Finding("device", "profile", f"{found.name}: the device's name is among its names")


def kernels(state: Any) -> list[Finding]:
    """Tell whether compiled kernels are there.

    Args:
        state: the portable CPU's `KernelState`.
    """
    if state.mode == "off":
        return [Finding("device", "CPU kernels", "SGLANG_CPU_KERNELS=off: PyTorch operators, slower")]
    built = "compiled" if state.compiled else "not compiled yet, the first start takes a minute longer"
    text = f"{state.isa}, {built}" if state.isa else "none"
    found = [Finding("device", "CPU kernels", text, state.problem)]
    if state.folder is not None:
        found.append(Finding("device", "kernel cache", f"{state.folder}, {ownership(state.folder)}"))
    return found


def ownership(path: Path) -> str:
    """Tell owner and mode of a file or folder, such as "alice, mode 0700"."""
    try:
        found = path.lstat()
    except OSError:
        return "not there"
    try:
        owner = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        owner = f"user {found.st_uid}"
    return f"{owner}, mode {stat.S_IMODE(found.st_mode):04o}"


def _memory(platform: Any) -> float:
    try:
        return float(platform.get_device_total_memory())
    except (NotImplementedError, RuntimeError):
        return 0.0

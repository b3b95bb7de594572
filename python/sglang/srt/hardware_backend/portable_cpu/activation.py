"""When the portable CPU platform is the right one: no accelerator, or asked for by name.

Upstream resolves its platform once per process. With ``SGLANG_PLATFORM`` unset it calls every
installed platform's ``activate()`` and an answer of None means "not me"; with ``SGLANG_PLATFORM`` set
it calls only the named one.
"""

import os

import torch

PLATFORM_NAME = "portable_cpu"
_PLATFORM_CLASS = "sglang.srt.hardware_backend.portable_cpu.srt_platform.PortableCpuPlatform"


def activate() -> str | None:
    """Dotted name of the platform class, or None to leave the machine to another platform.

    None whenever an accelerator is usable or ``SGLANG_USE_CPU_ENGINE=1`` asks for upstream's own CPU
    engine, unless ``SGLANG_PLATFORM=portable_cpu`` says otherwise.
    """
    if os.environ.get("SGLANG_PLATFORM") == PLATFORM_NAME:
        _register_our_general_plugin()
        return _PLATFORM_CLASS
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1" or usable_accelerators():
        return None
    return _PLATFORM_CLASS


def usable_accelerators() -> list[str]:
    """Names of the accelerator kinds this process could run on, as PyTorch and its plugins see them.

    ``torch.accelerator`` covers whatever a vendor package registers as PyTorch's device (NPU, HPU and
    devices yet unknown to us); the others are asked by name because some builds answer only there.
    """
    found = []
    if torch.cuda.is_available():
        found.append("rocm" if torch.version.hip is not None else "cuda")
    for kind in ("xpu", "npu", "mps", "hpu"):
        backend = getattr(torch, kind, None)
        if backend is not None and backend.is_available():
            found.append(kind)
    if getattr(torch.version, "musa", None) is not None:
        found.append("musa")
    if not found and torch.accelerator.is_available():
        found.append(str(torch.accelerator.current_accelerator()))
    return found


def _register_our_general_plugin() -> None:
    """Keep the scheduler's hooks when ``SGLANG_PLATFORM`` names this platform.

    Upstream then skips the general plugins of every distribution that also ships an unselected
    platform, which is meant for other vendors' packages but includes this one.
    """
    from sglang.srt.blend.runtime.plugin import ensure_registered

    ensure_registered()

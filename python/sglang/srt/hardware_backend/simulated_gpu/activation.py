"""The simulated GPU is chosen by name only."""

import os

PLATFORM_NAME = "simulated_gpu"
_PLATFORM_CLASS = "sglang.srt.hardware_backend.simulated_gpu.srt_platform.SimulatedGpuPlatform"


def activate() -> str | None:
    """Dotted name of the platform class with ``SGLANG_PLATFORM=simulated_gpu``, otherwise None."""
    if os.environ.get("SGLANG_PLATFORM") != PLATFORM_NAME:
        return None
    # Upstream skips the general plugin of a distribution that ships another, unselected platform.
    from sglang.srt.blend.runtime.plugin import ensure_registered

    ensure_registered()
    return _PLATFORM_CLASS

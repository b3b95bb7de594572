"""The simulated platform: a CPU device with a GPU's capacity and nothing behind it.

Upstream modules are imported inside methods: the platform is resolved while ``sglang.srt.utils`` is
itself still being imported.
"""

from collections.abc import Callable
from typing import Any

import torch

from sglang.srt.hardware_backend.simulated_gpu.settings import SimulationSettings
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

# Weights and KV cache as a part of the GPU's memory: what upstream settles on for an 80 GB GPU.
STATIC_MEMORY_FRACTION = 0.88
CHUNKED_PREFILL_TOKENS = 8192  # upstream's choice for GPUs of 80 GB


class SimulatedGpuPlatform(CpuDeviceMixin, SRTPlatform):
    """A GPU of which only capacity and speed are known."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()

    def get_device(self, device_id: int = 0) -> str:  # type: ignore[override]
        """Device as the string that server arguments hold; tensors (indices, lengths) live on the CPU."""
        return "cpu"

    def get_device_total_memory(self, device_id: int = 0) -> int:
        return int(SimulationSettings.from_environment().hardware.memory)

    def get_current_memory_usage(self, device: torch.device | None = None) -> float:
        return 0.0

    def get_default_attention_backend(self) -> str:
        return "torch_native"  # never runs

    def get_compile_backend(self, mode: str | None = None) -> str:
        return "eager"

    def get_kv_pool_cls(self, *, kind: str) -> type | None:  # type: ignore[override]
        from sglang.srt.hardware_backend.simulated_gpu import kv_pool

        return kv_pool.pool_class(kind)

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Fill in what the user left open; explicit arguments stand."""
        server_args.load_format = "dummy"  # there is nothing to load weights into
        if server_args.attention_backend in (None, "intel_amx"):
            server_args.attention_backend = self.get_default_attention_backend()
        if server_args.mem_fraction_static is None:
            server_args.mem_fraction_static = STATIC_MEMORY_FRACTION
        if server_args.chunked_prefill_size is None:
            server_args.chunked_prefill_size = CHUNKED_PREFILL_TOKENS
        if SimulationSettings.from_environment().engine in ("mixed", "overlapped"):
            server_args.enable_mixed_chunk = True
        server_args.sleep_on_idle = True

    def simulated_clock(self, worker: Any) -> Callable[[], float]:
        """The device's clock, which only its passes move."""
        from sglang.srt.hardware_backend.simulated_gpu.hooks import device_of

        return lambda: device_of(worker).clock

    def init_backend(self) -> None:
        from sglang.srt.hardware_backend.simulated_gpu import hooks

        hooks.install(hooks.LOADING_HOOKS)

    def post_load_model(self, model: torch.nn.Module) -> None:
        from sglang.srt.hardware_backend.simulated_gpu import hooks

        hooks.install(hooks.EXECUTION_HOOKS)

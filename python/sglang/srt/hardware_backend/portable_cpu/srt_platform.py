"""The portable CPU platform: kernels compiled for the CPU at hand, PyTorch operators for everything else.

Upstream's own CPU engine needs kernels that no wheel on PyPI carries. This platform declares itself
out-of-tree, so upstream dispatches every fused operator to ours (``fused_ops``) or to its PyTorch reference.

Upstream modules are imported inside methods: the platform is resolved while ``sglang.srt.utils`` is
itself still being imported.
"""

import os
from collections.abc import Callable
from typing import Any

import torch

from sglang.srt.blend.runtime import versions
from sglang.srt.blend.runtime.arguments import attention_groups, rank_count
from sglang.srt.hardware_backend.portable_cpu.kernel_build import KernelState, kernel_state
from sglang.srt.hardware_backend.portable_cpu.kernel_registration import (
    add_attention_backend_choice,
    register_kernels,
)
from sglang.srt.hardware_backend.portable_cpu.names import ATTENTION_BACKEND
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

# Weights and KV cache of all ranks together, as a part of the memory that is free at start-up. The rest
# is for activations, the tokenizer and HTTP processes, and whatever else the machine does.
STATIC_MEMORY_FRACTION = 0.6

# KV cache, tokens per core, when its size was left open. PyTorch touches every page of the pool at
# start-up (about 0.5 GB/s), so a pool that fills the memory of a small machine starts slowly and leaves
# nothing for others; what can be decoded in reasonable time grows with the cores anyway.
KV_TOKENS_PER_CORE = 32768

# Upstream's variable: the cores of each rank, "0,1|2,3".
THREADS_BIND = "SGLANG_CPU_OMP_THREADS_BIND"

# GNU OpenMP's variables: how threads wait for each other at the end of a product.
WAIT_POLICY, SPIN_COUNT = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"

# Turns that a thread waits awake. By itself it is 300,000; where another process has one of the cores, a step
# then takes up to ninety times as long as alone. Asleep from the start, threads are slower alone.
SPINS = 1000

# Longest prefill chunk, tokens: a longer one keeps decoding requests waiting for many seconds.
CHUNKED_PREFILL_TOKENS = 2048


class PortableCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """Any CPU that PyTorch runs on."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()  # neither Triton nor graph capture

    def __init__(self) -> None:
        super().__init__()
        add_attention_backend_choice()

    def init_backend(self) -> None:
        """In every worker: make upstream find the attention backend and the fused operators."""
        register_kernels(self.get_dispatch_key_name())

    def get_dispatch_key_name(self) -> str:
        return "portable_cpu"

    def get_device(self, device_id: int = 0) -> str:  # type: ignore[override]
        """Device as the string that server arguments hold; every rank shares the one CPU device."""
        return "cpu"

    def get_device_total_memory(self, device_id: int = 0) -> int:
        """Bytes of memory this process may use: the machine's, or its container's limit if lower."""
        total = super().get_device_total_memory(device_id)
        limit = versions.memory_limit()
        return total if limit is None else min(total, limit)

    def get_current_memory_usage(self, device: torch.device | None = None) -> float:
        """Bytes in use, so that total - usage is what a new allocation can get."""
        return float(self.get_device_total_memory() - versions.free_memory())

    def get_default_attention_backend(self) -> str:
        return ATTENTION_BACKEND

    def product(self, weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """x -> x W^T as linear layers compute it here; `sglang-batch calibrate` times it."""
        from sglang.srt.hardware_backend.portable_cpu.packed_linear import packed_product

        return packed_product(weight)

    def kernel_state(self) -> KernelState:
        """What a start would find and do about the compiled kernels; `sglang-batch doctor` shows it."""
        return kernel_state()

    def get_compile_backend(self, mode: str | None = None) -> str:
        return "eager"

    def get_torch_profiler_activity_str(self) -> str:
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        return torch.profiler.ProfilerActivity.CPU

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Fill in what the user left open; explicit arguments stand."""
        # Upstream's rule for CPUs has already chosen intel_amx where nothing was asked for, and would
        # only fall back with a warning about this machine.
        if server_args.attention_backend in (None, "intel_amx") and not _amx_kernels_usable():
            server_args.attention_backend = self.get_default_attention_backend()
        if server_args.mem_fraction_static is None:
            if server_args.max_total_tokens is None:
                server_args.max_total_tokens = KV_TOKENS_PER_CORE * (os.cpu_count() or 1)
            server_args.mem_fraction_static = round(STATIC_MEMORY_FRACTION / _ranks_per_node(server_args), 3)
        if server_args.chunked_prefill_size is None:
            server_args.chunked_prefill_size = CHUNKED_PREFILL_TOKENS
        _refuse_attention_groups(server_args)
        _give_ranks_their_cores(_ranks_per_node(server_args))
        _wait_briefly()
        # An idle scheduler otherwise spins on a core that the forward pass of another rank, the
        # tokenizer and the HTTP server want.
        server_args.sleep_on_idle = True


def _amx_kernels_usable() -> bool:
    from sglang.srt.utils.common import cpu_has_amx_support

    return bool(cpu_has_amx_support())


def _ranks_per_node(server_args: Any) -> int:
    """Scheduler processes on this machine; each sizes its KV cache from the same free memory."""
    return max(1, rank_count(server_args) // server_args.nnodes)


def _refuse_attention_groups(server_args: Any) -> None:
    """Refuse before processes start what would end them: batches of such ranks are padded to one size."""
    if attention_groups(server_args) > 1 and server_args.attention_backend == ATTENTION_BACKEND:
        raise ValueError(
            "--attn-dp-size (--enable-dp-attention) is not supported by --attention-backend"
            f" {ATTENTION_BACKEND}; use --dp-size {attention_groups(server_args)} without it"
        )


def _wait_briefly() -> None:
    """Let threads of schedulers, started after this, sleep soon when they wait, unless the user said how."""
    if WAIT_POLICY not in os.environ:
        os.environ.setdefault(SPIN_COUNT, str(SPINS))


def _give_ranks_their_cores(ranks: int) -> None:
    """Deal the cores out where upstream would refuse: more ranks than NUMA nodes and no binding given."""
    from sglang.srt.utils.common import get_cpu_ids_by_node

    nodes = get_cpu_ids_by_node()
    if ranks <= len(nodes) or os.environ.get(THREADS_BIND):
        return
    cores = [core for node in nodes for core in node.split(",")]
    shares = [cores[len(cores) * rank // ranks : len(cores) * (rank + 1) // ranks] for rank in range(ranks)]
    os.environ[THREADS_BIND] = "|".join(",".join(share or cores) for share in shares)

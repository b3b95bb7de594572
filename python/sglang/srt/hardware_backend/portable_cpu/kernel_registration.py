"""Hands the kernels to upstream: the backend's name to the argument parser, the rest to the workers."""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

ATTENTION_BACKEND = "portable_cpu"
SAMPLING_BACKEND = "pytorch"
"""Upstream's name for CPUs, so that its rules for this choice hold for ours."""


def add_attention_backend_choice() -> None:
    """Let ``--attention-backend portable_cpu`` pass the argument parser. Call before arguments are parsed."""
    from sglang.srt.arg_groups import choices

    if ATTENTION_BACKEND not in choices.ATTENTION_BACKEND_CHOICES:
        choices.add_attention_backend_choices([ATTENTION_BACKEND])


def register_kernels(dispatch_key: str) -> None:
    """Register attention backend, fused operators and sampler, in every worker before the model is built.

    Args:
        dispatch_key: the platform's ``get_dispatch_key_name()``.
    """
    from sglang.srt.hardware_backend.portable_cpu.fused_ops import register_fused_ops
    from sglang.srt.hardware_backend.portable_cpu.sampler import PortableSampler
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.layers.sampler import register_sampler_backend

    register_attention_backend(ATTENTION_BACKEND)(_create_attention_backend)
    register_fused_ops(dispatch_key)
    register_sampler_backend(SAMPLING_BACKEND, PortableSampler)
    _use_torch_for_last_locations()


def _create_attention_backend(runner: "ModelRunner") -> Any:
    """Called once the model is loaded, so this is where its weights are packed, too."""
    from sglang.srt.hardware_backend.portable_cpu.attention_backend import PortableCpuAttnBackend

    _pack_weights_of(runner)
    return PortableCpuAttnBackend(runner)


def _use_torch_for_last_locations() -> None:
    """Pages longer than one token need the slot that precedes each chunk; upstream asks Triton for it.

    ``get_last_loc`` picks its PyTorch version by the name torch_native alone, so every other backend's
    name leads to a Triton kernel, which cannot launch here.

    Raises:
        RuntimeError: this SGLang has no such function.
    """
    from sglang.srt.plugins.hook_registry import HookType

    _patch("sglang.srt.mem_cache.allocation.get_last_loc", _last_locations, HookType.REPLACE)


def _pack_weights_of(runner: "ModelRunner") -> None:
    """Pack the loaded model's weights, now and whenever they change, and let its layers run in one call.

    Raises:
        RuntimeError: this SGLang lacks a function that updates weights.
    """
    from sglang.srt.hardware_backend.portable_cpu.decoder_stack import PLAIN_DECODERS, class_name, forward
    from sglang.srt.hardware_backend.portable_cpu.packed_linear import pack_weights
    from sglang.srt.plugins.hook_registry import HookType

    pack_weights(runner.model)
    for module in runner.model.modules():
        if class_name(module) in PLAIN_DECODERS:
            _patch(f"{class_name(module)}.forward", forward, HookType.AROUND)
    for method in (
        "update_weights_from_disk",
        "update_weights_from_tensor",
        "update_weights_from_ipc",
        "load_weights_from_distributed",
    ):
        updater = "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater"
        _patch(f"{updater}.{method}", _pack_updated_weights, HookType.AFTER)


def _pack_updated_weights(_result: Any, updater: Any, *_args: Any, **_options: Any) -> None:
    from sglang.srt.hardware_backend.portable_cpu.decoder_stack import forget_stacks
    from sglang.srt.hardware_backend.portable_cpu.packed_linear import pack_weights

    model = updater.get_model_runner().model
    pack_weights(model)
    forget_stacks(model)


def _patch(target: str, hook: Any, kind: Any) -> None:
    """Register a hook and see to it that it is in place; RuntimeError if upstream has no such function."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    if target not in HookRegistry._patched:
        HookRegistry.register(target, hook, kind)
        HookRegistry.apply_hooks()
    if target not in HookRegistry._patched:  # upstream only logs what it could not patch
        raise RuntimeError(f"--attention-backend {ATTENTION_BACKEND}: the installed SGLang has no {target}")


def _last_locations(
    req_to_token: torch.Tensor, req_pool_indices: torch.Tensor, prefix_lens: torch.Tensor
) -> torch.Tensor:
    """Slot of the last cached token of each request, -1 where nothing is cached; (requests,)."""
    last = req_to_token[req_pool_indices, (prefix_lens - 1).clamp(min=0)]
    return torch.where(prefix_lens > 0, last, -1)

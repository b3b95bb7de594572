"""Every hook of the portable CPU, and why. `kernel_registration` puts them in place."""

from typing import Any

import torch

from sglang.srt.blend.runtime.installer import Hook, HookType

_UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater"


def _last_locations(
    req_to_token: torch.Tensor, req_pool_indices: torch.Tensor, prefix_lens: torch.Tensor
) -> torch.Tensor:
    """Slot of the last cached token of each request, -1 where nothing is cached; (requests,)."""
    last = req_to_token[req_pool_indices, (prefix_lens - 1).clamp(min=0)]
    return torch.where(prefix_lens > 0, last, -1)


def _pack_updated_weights(_result: Any, updater: Any, *_args: Any, **_options: Any) -> None:
    from sglang.srt.hardware_backend.portable_cpu.decoder_stack import forget_stacks
    from sglang.srt.hardware_backend.portable_cpu.packed_linear import pack_weights

    model = updater.get_model_runner().model
    pack_weights(model)
    forget_stacks(model)


STEP_HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.mem_cache.allocation.get_last_loc",
        _last_locations,
        HookType.REPLACE,
        "pages longer than a token need the slot before each chunk; for every backend's name but "
        "torch_native upstream asks a Triton kernel, which cannot launch here",
    ),
)
"""In every worker, before the model is built."""

WEIGHT_HOOKS: tuple[Hook, ...] = tuple(
    Hook(
        f"{_UPDATER}.{method}",
        _pack_updated_weights,
        HookType.AFTER,
        "new weights are packed as the loaded ones were",
    )
    for method in (
        "update_weights_from_disk",
        "update_weights_from_tensor",
        "update_weights_from_ipc",
        "load_weights_from_distributed",
    )
)
"""Where the weights of a loaded model have been packed."""

HOOKS = STEP_HOOKS + WEIGHT_HOOKS


def decoder_hooks(model: torch.nn.Module) -> tuple[Hook, ...]:
    """Around each decoder of a loaded model whose layers can run in one call."""
    from sglang.srt.hardware_backend.portable_cpu.decoder_stack import PLAIN_DECODERS, class_name, forward

    names = dict.fromkeys(class_name(module) for module in model.modules())
    return tuple(
        Hook(f"{name}.forward", forward, HookType.AROUND, "all layers of a step in one call")
        for name in names
        if name in PLAIN_DECODERS
    )

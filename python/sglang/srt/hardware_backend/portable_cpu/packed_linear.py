"""Linear layers with weights in the order in which they are read, packed once after loading.

``F.linear`` lets the BLAS find its way through a row-major weight at every call, which costs most where there
are few rows: decoding. Weights are packed for ``csrc/product.cpp`` where that is fastest (bfloat16 on CPUs
with AVX512-BF16), else for PyTorch's oneDNN operators (what its compiler does when it freezes a
model). The original stays for whoever reads or updates it, so weights take twice the memory; they are left
alone where that would take more than half of what is free.
"""

import logging
import os
from collections.abc import Callable
from typing import Any, cast

import torch

from sglang.srt.blend.runtime import versions
from sglang.srt.hardware_backend.portable_cpu.kernels import CompiledKernels, get_kernels
from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod, UnquantizedLinearMethod

logger = logging.getLogger(__name__)

_PACKED = "portable_cpu_packed_weight"
_MEMORY_SHARE = 0.5


class PackedLinearMethod(UnquantizedLinearMethod):
    """Upstream's unquantised linear layer, on a packed copy of its weight."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        _pack(layer)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return _linear(layer, x, bias)


class PackedHeadMethod(UnquantizedEmbeddingMethod):
    """Upstream's unquantised embedding, whose packed copy serves as the language model's head."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        _pack(layer)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        # Upstream's plain head leaves the bias to the model, which adds it to the logits.
        return _linear(layer, x.to(_weight(layer).dtype), None)


def pack_weights(model: torch.nn.Module) -> int:
    """Pack, or pack anew, every unquantised linear layer and the head of a loaded model; how many they are.

    None are where ``SGLANG_CPU_KERNELS=off``, or memory or the CPU does not allow it.
    """
    head = getattr(model, "lm_head", None) if _head_is_plain(model) else None
    layers: list[tuple[torch.nn.Module, Any]] = []
    for module in filter(_packable, model.modules()):
        method = type(getattr(module, "quant_method", None))
        if method in (UnquantizedLinearMethod, PackedLinearMethod):
            layers.append((module, PackedLinearMethod))
        elif module is head and method in (UnquantizedEmbeddingMethod, PackedHeadMethod):
            layers.append((module, PackedHeadMethod))
    needed = sum(_weight(module).nbytes for module, _ in layers if not hasattr(module, _PACKED))
    if needed > _MEMORY_SHARE * versions.free_memory():
        logger.info("Weights are not packed: the copy would take %.1f GB.", needed / 1e9)
        return 0
    for module, method in layers:
        module.quant_method = method()
        _pack(module)
    return len(layers)


def _head_is_plain(model: torch.nn.Module) -> bool:
    """Whether logits are to be computed in the weight's own type, as the packed head does."""
    logits = getattr(model, "logits_processor", None)
    return (
        logits is not None
        and not getattr(logits, "use_fp32_lm_head", True)
        and getattr(logits, "rl_on_policy_target", "unknown") is None
    )


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN's operators are there, and fast, for weights of this type on this CPU."""
    if os.environ.get("SGLANG_CPU_KERNELS") == "off" or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _packable(layer: torch.nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2 and can_pack(weight.dtype)


def packed_product(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """x -> x W^T as a layer with this weight computes it, packed where that is possible."""
    if not can_pack(weight.dtype):
        return lambda x: torch.nn.functional.linear(x, weight)
    packed = packed_copy(weight)
    return lambda x: multiply(x, packed)


def packed_copy(weight: torch.Tensor) -> torch.Tensor:
    """The weight as ``multiply`` takes it; ``can_pack`` says for which dtypes."""
    kernels = get_kernels()
    if isinstance(kernels, CompiledKernels) and kernels.can_multiply(weight):
        return kernels.pack_weight(weight.contiguous())
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def multiply(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + bias over the last dimension of x, with a weight from ``packed_copy`` and of its dtype."""
    if packed.is_mkldnn:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return out
    kernels = get_kernels()
    assert isinstance(kernels, CompiledKernels)  # nobody else packs so
    if x.ndim == 2:
        return kernels.product(x, packed, bias)
    return kernels.product(x.flatten(0, -2), packed, bias).unflatten(0, x.shape[:-1])


def packed_weight(layer: torch.nn.Module) -> torch.Tensor:
    """The packed copy of a layer that ``pack_weights`` has packed."""
    return cast(torch.Tensor, getattr(layer, _PACKED))


def _weight(layer: torch.nn.Module) -> torch.Tensor:
    return cast(torch.Tensor, layer.weight)


def _pack(layer: torch.nn.Module) -> None:
    with torch.no_grad():
        setattr(layer, _PACKED, packed_copy(_weight(layer).detach().contiguous()))


def _linear(layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    weight = _weight(layer)
    if x.dtype != weight.dtype or not x.numel():
        return torch.nn.functional.linear(x, weight, bias)
    return multiply(x, packed_weight(layer), bias)

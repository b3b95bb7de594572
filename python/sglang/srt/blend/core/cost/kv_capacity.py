"""What the KV cache holds beside a model's weights, as SGLang divides the memory of a GPU."""

from __future__ import annotations

from sglang.srt.blend.core.cost.hardware import Hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape


def kv_cache_bytes(shape: ModelShape, hardware: Hardware, mem_fraction_static: float) -> float:
    """Bytes that one rank has for its KV cache; negative where its weights do not fit.

    Args:
        mem_fraction_static: part of the GPU's memory for weights and KV cache, in (0, 1].
    """
    return hardware.memory * mem_fraction_static - shape.weight_bytes


def kv_capacity(shape: ModelShape, hardware: Hardware, mem_fraction_static: float) -> int:
    """Tokens that the KV cache of one rank holds, all layers counted; arguments as in `kv_cache_bytes`.

    >>> from sglang.srt.blend.core.cost.hardware import load_hardware
    >>> shape = ModelShape(7.5e9, weight_bytes=15e9, layers=32, attention_width=4096, kv_bytes=4096)
    >>> kv_capacity(shape, load_hardware("a100-80gb"), 0.88)
    422668
    """
    return int(kv_cache_bytes(shape, hardware, mem_fraction_static) / shape.kv_bytes_per_token)

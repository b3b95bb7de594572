"""Upstream's fused operators on the platform's kernels, through ``BaseFusedOp.register_oot_forward``.

Each function is the ``forward`` of one operator class, bound to the instance by upstream's dispatch. What the
kernel does not cover goes to the class's own ``forward_native``, which is what the platform would otherwise
run for everything.
"""

from typing import TYPE_CHECKING, Any

import torch

from sglang.srt.hardware_backend.portable_cpu.kernels import SUPPORTED_DTYPES, get_kernels

if TYPE_CHECKING:
    from sglang.srt.layers.activation import SiluAndMul
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding


def register_fused_ops(dispatch_key: str) -> None:
    """Make upstream's operators use the kernels on the platform with this dispatch key."""
    from sglang.kernels.fused_op import BaseFusedOp
    from sglang.srt.layers.activation import SiluAndMul
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.layers.rotary_embedding import base, rope_variant, yarn

    BaseFusedOp.register_oot_forward(RMSNorm, rms_norm_forward, dispatch_key)
    BaseFusedOp.register_oot_forward(SiluAndMul, silu_and_mul_forward, dispatch_key)
    # Dispatch is by exact class; these differ from the base only in the table of angles.
    for rope in (
        base.RotaryEmbedding,
        base.LinearScalingRotaryEmbedding,
        rope_variant.Llama3RotaryEmbedding,
        rope_variant.DynamicNTKAlphaRotaryEmbedding,
        rope_variant.DynamicNTKScalingRotaryEmbedding,
        yarn.YaRNScalingRotaryEmbedding,
    ):
        BaseFusedOp.register_oot_forward(rope, rotary_embedding_forward, dispatch_key)


def covers_norm(norm: "RMSNorm", dtype: torch.dtype) -> bool:
    """Whether the kernel computes what this norm of inputs of this type does."""
    return (
        dtype in SUPPORTED_DTYPES
        and norm.weight.dtype in SUPPORTED_DTYPES
        and norm.variance_size_override is None
        and norm.override_orig_dtype is None
        and not norm.cast_x_before_out_mul
        and not norm.fp32_residual
    )


def covers_rotation(rotary: "RotaryEmbedding") -> bool:
    """Whether the kernel takes this operator's table of angles."""
    return rotary.cos_sin_cache.dtype in SUPPORTED_DTYPES and not hasattr(rotary, "sin_cos_cache")


def rms_norm_forward(
    self: "RMSNorm",
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    post_residual_addition: torch.Tensor | None = None,
    quant_linear: Any = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Normalise x (+ residual); like upstream's CUDA kernel, the sum replaces the residual in place."""
    covered = (
        covers_norm(self, x.dtype)
        and x.shape[-1] == self.hidden_size
        and post_residual_addition is None
        and (residual is None or (residual.dtype == x.dtype and residual.shape == x.shape))
        and (residual is None or residual.is_contiguous())
    )
    if not covered:
        return self.forward_native(x, residual, post_residual_addition)
    rows = x.reshape(-1, self.hidden_size)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    flat = None if residual is None else residual.view(-1, self.hidden_size)
    out = get_kernels().rms_norm(rows, self.weight.detach(), self.variance_epsilon, flat).view(x.shape)
    return out if residual is None else (out, residual)


def silu_and_mul_forward(self: "SiluAndMul", x: torch.Tensor) -> torch.Tensor:
    """silu(first half) * second half of the last dimension."""
    if x.dtype not in SUPPORTED_DTYPES or x.stride(-1) != 1:
        return self.forward_native(x)
    out = get_kernels().silu_and_mul(x.reshape(-1, x.shape[-1]))
    return out.view(*x.shape[:-1], x.shape[-1] // 2)


def rotary_embedding_forward(
    self: "RotaryEmbedding",
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    offsets: torch.Tensor | None = None,
    fused_set_kv_buffer_arg: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate query and key in place, as upstream's CUDA kernel does."""
    covered = (
        fused_set_kv_buffer_arg is None
        and offsets is None
        and positions.ndim == 1
        and positions.dtype == torch.int64
        and query.dtype in SUPPORTED_DTYPES
        and query.dtype == key.dtype
        and covers_rotation(self)
        and all(_is_rows_of_heads(x, positions.shape[0]) for x in (query, key))
    )
    if not covered:
        return self.forward_native(positions, query, key, offsets, fused_set_kv_buffer_arg)
    get_kernels().rotary_embedding(
        positions.contiguous(),
        query.flatten(1),
        key.flatten(1),
        self.cos_sin_cache,
        head_dim=self.head_size,
        neox=self.is_neox_style,
    )
    return query, key


def _is_rows_of_heads(x: torch.Tensor, tokens: int) -> bool:
    """(tokens, heads * head_dim), or (tokens, heads, head_dim) whose heads are adjacent."""
    if x.ndim not in (2, 3) or x.shape[0] != tokens or x.stride(-1) != 1:
        return False
    return x.ndim == 2 or x.stride(1) == x.shape[2]

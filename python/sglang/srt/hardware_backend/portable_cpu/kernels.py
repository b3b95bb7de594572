"""The platform's operators, compiled where a compiler exists and in PyTorch elsewhere.

Both implementations have one interface, so the attention backend and the fused operators do not know which
they got. Shapes, with T tokens of the step, H query heads, G KV heads, D and V head dimensions of keys and
values: q (T, H, D), k (T, G, D), v (T, G, V), caches (slots, G, D or V), out (T, H, V). The last dimension
is contiguous. q, k, v may be float32, bfloat16 or float16, the caches any of them independently; all
arithmetic is float32.
"""

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch

from sglang.srt.hardware_backend.portable_cpu import kernel_build
from sglang.srt.hardware_backend.portable_cpu.attention_plan import AttentionPlan

# Outputs that one block of a packed weight holds, and inputs in a tile of the matrix unit (csrc/product.h).
_PRODUCT_COLUMNS = 32
_TILE_INPUTS = 32

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A decoder's L layers for ``CompiledKernels.decoder_layers``.

    Attributes:
        norms: weights before attention and before the MLP of each layer, and of the final norm, 2 L + 1.
        products: packed (``packed_linear``) weights of each layer's qkv, output, gate-up and down
            projections, 4 L.
        biases: of those, None where there is none.
        k_caches, v_caches: of each layer.
        cos_sin: angles as in ``Kernels.rotary_embedding``.
    """

    norms: list[torch.Tensor]
    products: list[torch.Tensor]
    biases: list[torch.Tensor | None]
    k_caches: list[torch.Tensor]
    v_caches: list[torch.Tensor]
    cos_sin: torch.Tensor
    heads: int
    head_dim: int
    scale: float
    eps: float
    neox: bool


class Kernels(Protocol):
    """What the platform needs computed."""

    def plan_attention(
        self,
        table_rows: torch.Tensor,
        lengths: torch.Tensor,
        extends: torch.Tensor,
        *,
        queries_per_kv_head: int,
        causal: bool = True,
    ) -> AttentionPlan:
        """Cut a step's attention into tasks; see ``AttentionPlan`` for the arguments."""
        ...

    def attention(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        out: torch.Tensor,
        table: torch.Tensor,
        plan: AttentionPlan,
        *,
        scale: float,
        logit_cap: float = 0.0,
        window: int = -1,
    ) -> None:
        """Fill ``out``. The new tokens' keys and values must already be in the caches.

        Args:
            table: slot of every cached position, (requests, positions) int32.
            scale: factor of q . k.
            logit_cap: c in c * tanh(scale * q . k / c); 0 for none.
            window: tokens before a query that it still sees, itself not counted; -1 for all.
        """
        ...

    def store_kv(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """Write k and v to the caches' rows ``slots`` (T,) int64, rounding to the caches' dtype."""
        ...

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x / rms(x) * weight over rows (rows, size). With a residual: of x + residual, kept in it."""
        ...

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        """silu(left half) * right half of each row of (rows, 2 * size)."""
        ...

    def rotary_embedding(
        self,
        positions: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        cos_sin: torch.Tensor,
        *,
        head_dim: int,
        neox: bool,
    ) -> None:
        """Rotate q and k, (T, heads * head_dim), in place.

        Args:
            cos_sin: (positions, rotary_dim), cosines in the first half of a row.
            neox: pairs are (i, i + rotary_dim / 2), otherwise neighbours.
        """
        ...


class CompiledKernels:
    """The C++ operators of ``sgl-kernel/csrc``."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        library = getattr(torch.ops, namespace)
        # Resolved once: attribute look-ups on torch.ops cost more than some of the operators.
        self._plan = library.attention_plan.default
        self._attention = library.attention.default
        self._store_kv = library.store_kv.default
        self._rms_norm = library.rms_norm.default
        self._silu_and_mul = library.silu_and_mul.default
        self._rotary_embedding = library.rotary_embedding.default
        self._pack_weight = library.pack_weight.default
        self._product = library.product.default
        self._decoder_layers = library.decoder_layers.default

    def plan_attention(
        self,
        table_rows: torch.Tensor,
        lengths: torch.Tensor,
        extends: torch.Tensor,
        *,
        queries_per_kv_head: int,
        causal: bool = True,
    ) -> AttentionPlan:
        tasks, merges, partial_rows = self._plan(table_rows, lengths, extends, queries_per_kv_head, causal)
        return AttentionPlan(table_rows, lengths, extends, causal, tasks, merges, partial_rows)

    def attention(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        out: torch.Tensor,
        table: torch.Tensor,
        plan: AttentionPlan,
        *,
        scale: float,
        logit_cap: float = 0.0,
        window: int = -1,
    ) -> None:
        self._attention(
            q,
            k_cache,
            v_cache,
            out,
            table,
            plan.tasks,
            plan.merges,
            plan.workspace(out.shape[1], out.shape[2]),
            scale,
            logit_cap,
            window,
            plan.causal,
        )

    def store_kv(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        self._store_kv(k, v, k_cache, v_cache, slots)

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        out = torch.empty(x.shape, dtype=x.dtype)
        self._rms_norm(x, residual, weight, out, eps)
        return out

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty((x.shape[0], x.shape[1] // 2), dtype=x.dtype)
        self._silu_and_mul(x, out)
        return out

    def rotary_embedding(
        self,
        positions: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        cos_sin: torch.Tensor,
        *,
        head_dim: int,
        neox: bool,
    ) -> None:
        self._rotary_embedding(positions, q, k, cos_sin, head_dim, neox)

    def can_multiply(self, weight: torch.Tensor) -> bool:
        """Whether ``product`` takes this weight (outputs, inputs), and is the fastest way here."""
        # Where there is AMX, oneDNN's is many times as fast as what does not fit our tiles.
        inputs = _TILE_INPUTS if torch.cpu.get_capabilities().get("amx_bf16", False) else 2
        return (
            self.namespace == kernel_build.INSTRUCTION_SETS["avx512_bf16"].namespace
            and weight.dtype == torch.bfloat16
            and weight.shape[0] % _PRODUCT_COLUMNS == 0
            and weight.shape[1] % inputs == 0
        )

    def pack_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as ``product`` reads it, (outputs / 32, inputs / 2, 32, 2); bfloat16, contiguous."""
        packed: torch.Tensor = self._pack_weight(weight)
        return packed

    def product(
        self, x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x W^T + bias of rows (T, inputs), summed in float32; (T, outputs), all bfloat16."""
        out: torch.Tensor = self._product(x, packed, bias)
        return out

    def decoder_layers(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        weights: DecoderWeights,
        table: torch.Tensor,
        plan: AttentionPlan,
    ) -> torch.Tensor:
        """Embeddings (T, size) through all layers and the final norm; the new KV goes to ``slots``."""
        out: torch.Tensor = self._decoder_layers(
            hidden,
            positions,
            slots,
            weights.norms,
            weights.products,
            weights.biases,
            weights.k_caches,
            weights.v_caches,
            weights.cos_sin,
            table,
            plan.tasks,
            plan.merges,
            plan.workspace(weights.heads, weights.head_dim),
            weights.head_dim,
            weights.scale,
            weights.eps,
            weights.neox,
        )
        return out


@cache
def get_kernels() -> Kernels:
    """The process's kernels; the first call may compile for a minute (see ``kernel_build``)."""
    from sglang.srt.hardware_backend.portable_cpu.torch_kernels import TorchKernels

    namespace = kernel_build.load_preferred()
    return TorchKernels() if namespace is None else CompiledKernels(namespace)

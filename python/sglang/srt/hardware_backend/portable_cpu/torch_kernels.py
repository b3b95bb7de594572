"""The platform's operators in plain PyTorch, for machines without a C++ compiler.

Same interface and results as ``CompiledKernels``. Decoding rows are computed together, padded to the
longest of a bounded group; prefill chunks one sequence at a time, against exactly the keys they see.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from sglang.srt.hardware_backend.portable_cpu.attention_plan import AttentionPlan

# Cached positions, padding included, that one group of decoding rows may gather.
_GATHERED_POSITIONS = 65536


class TorchKernels:
    """See ``kernels.Kernels`` for what each operator does."""

    def plan_attention(
        self,
        table_rows: torch.Tensor,
        lengths: torch.Tensor,
        extends: torch.Tensor,
        *,
        queries_per_kv_head: int,
        causal: bool = True,
    ) -> AttentionPlan:
        return AttentionPlan(table_rows, lengths, extends, causal)

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
        first_query = plan.extends.cumsum(0) - plan.extends
        for group in _groups(plan):
            queries = int(plan.extends[group[0]])
            width = int(plan.lengths[group].max())
            slots = table[plan.table_rows[group], :width].long()
            key_position = torch.arange(width)
            query_position = (plan.lengths[group] - queries)[:, None] + torch.arange(queries)
            visible = key_position < plan.lengths[group][:, None, None]
            if plan.causal:
                visible = visible & (key_position <= query_position[..., None])
            if window >= 0:
                visible = visible & (key_position >= query_position[..., None] - window)
            # Padding may point at anything, not-a-number included, which a weight of 0 would not hide.
            slots = torch.where(key_position < plan.lengths[group][:, None], slots, slots[:, :1])
            token = first_query[group][:, None] + torch.arange(queries)
            out[token] = _attend(
                q[token].float(),
                k_cache[slots].float(),
                v_cache[slots].float(),
                visible,
                scale=scale,
                logit_cap=logit_cap,
            ).to(out.dtype)

    def store_kv(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        k_cache[slots] = k.to(k_cache.dtype)
        v_cache[slots] = v.to(v_cache.dtype)

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        wide = x.float()
        if residual is not None:
            wide = wide + residual.float()
            residual.copy_(wide)
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.float().chunk(2, dim=-1)
        return (F.silu(gate) * up).to(x.dtype)

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
        rotary_dim = cos_sin.shape[1]
        cosine, sine = cos_sin[positions].float()[:, None].chunk(2, dim=-1)  # (T, 1, rotary_dim / 2)
        for x in (q, k):
            heads = x.unflatten(1, (-1, head_dim))[..., :rotary_dim]
            a, b = (
                heads.float().chunk(2, dim=-1)
                if neox
                else (heads[..., ::2].float(), heads[..., 1::2].float())
            )
            rotated = (a * cosine - b * sine, b * cosine + a * sine)
            heads.copy_(torch.cat(rotated, dim=-1) if neox else torch.stack(rotated, dim=-1).flatten(-2))


def _groups(plan: AttentionPlan) -> Iterator[torch.Tensor]:
    """Indices of sequences to compute together: decoding ones by length, the others alone."""
    decoding = (plan.extends == 1).nonzero().flatten()
    decoding = decoding[plan.lengths[decoding].argsort(descending=True)]
    while decoding.numel():
        size = max(1, _GATHERED_POSITIONS // int(plan.lengths[decoding[0]]))
        yield decoding[:size]
        decoding = decoding[size:]
    yield from (plan.extends > 1).nonzero()


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor,
    *,
    scale: float,
    logit_cap: float,
) -> torch.Tensor:
    """Attention of (sequences, queries, H, D) on (sequences, keys, G, .), float32."""
    grouped = q.unflatten(2, (k.shape[2], -1))  # (s, q, G, H / G, D)
    scores = torch.einsum("sqghd,skgd->sqghk", grouped, k) * scale
    if logit_cap > 0:
        scores = logit_cap * torch.tanh(scores / logit_cap)
    scores = scores.masked_fill(~visible[:, :, None, None], float("-inf"))
    return torch.einsum("sqghk,skgv->sqghv", scores.softmax(-1), v).flatten(2, 3)

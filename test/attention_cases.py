"""Ragged attention steps over a scattered KV pool, and what float64 says the answer is."""

from dataclasses import dataclass

import torch


@dataclass
class AttentionCase:
    """One step's attention.

    Attributes:
        q: (tokens, heads, head_dim).
        k_cache, v_cache: (slots, kv_heads, dim); unused slots hold not-a-number.
        table: (requests, positions) int32, rows in no particular order, unused entries out of range.
        rows, lengths, extends: (sequences,) int64.
        scale, logit_cap, window: as in Kernels.attention.
    """

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    table: torch.Tensor
    rows: torch.Tensor
    lengths: torch.Tensor
    extends: torch.Tensor
    scale: float
    logit_cap: float = 0.0
    window: int = -1

    @property
    def group(self) -> int:
        return self.q.shape[1] // self.k_cache.shape[1]

    @property
    def out(self) -> torch.Tensor:
        return self.q.new_full((*self.q.shape[:2], self.v_cache.shape[2]), float("nan"))


def make_case(
    lengths: list[int],
    extends: list[int],
    *,
    heads: int = 9,
    kv_heads: int = 3,
    head_dim: int = 64,
    value_dim: int | None = None,
    page_size: int = 1,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    logit_cap: float = 0.0,
    window: int = -1,
    seed: int = 0,
) -> AttentionCase:
    """Random step; pages are scattered over the pool, tokens of one page are adjacent."""
    random = torch.Generator().manual_seed(seed)
    value_dim = head_dim if value_dim is None else value_dim
    cache_dtype = dtype if cache_dtype is None else cache_dtype
    pages_per_sequence = [-(-length // page_size) for length in lengths]
    pages = torch.randperm(sum(pages_per_sequence) + 3, generator=random)
    slots = len(pages) * page_size

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    k_cache = torch.full((slots, kv_heads, head_dim), float("nan"), dtype=cache_dtype)
    v_cache = torch.full((slots, kv_heads, value_dim), float("nan"), dtype=cache_dtype)
    table = torch.full((len(lengths) + 3, max(lengths) + 5), 2**30, dtype=torch.int32)
    rows = torch.randperm(len(lengths) + 3, generator=random)[: len(lengths)]
    next_page = 0
    for row, length, count in zip(rows, lengths, pages_per_sequence, strict=True):
        own = pages[next_page : next_page + count]
        next_page += count
        used = (own[:, None] * page_size + torch.arange(page_size)).flatten()[:length]
        table[row, :length] = used.int()
        k_cache[used] = normal(length, kv_heads, head_dim).to(cache_dtype)
        v_cache[used] = normal(length, kv_heads, value_dim).to(cache_dtype)
    return AttentionCase(
        q=(2 * normal(sum(extends), heads, head_dim)).to(dtype),
        k_cache=k_cache,
        v_cache=v_cache,
        table=table,
        rows=rows,
        lengths=torch.tensor(lengths),
        extends=torch.tensor(extends),
        scale=head_dim**-0.5,
        logit_cap=logit_cap,
        window=window,
    )


def reference_attention(case: AttentionCase) -> torch.Tensor:
    """(tokens, heads, value_dim) in float64, one sequence at a time, from the definition."""
    answers = []
    queries = case.q.double().split(case.extends.tolist())
    for row, length, q in zip(case.rows.tolist(), case.lengths.tolist(), queries, strict=True):
        slots = case.table[row, :length].long()
        k = case.k_cache[slots].double().repeat_interleave(case.group, dim=1)
        v = case.v_cache[slots].double().repeat_interleave(case.group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * case.scale
        if case.logit_cap > 0:
            scores = case.logit_cap * torch.tanh(scores / case.logit_cap)
        distance = torch.arange(length - len(q), length)[:, None] - torch.arange(length)
        visible = (distance >= 0) & ((distance <= case.window) if case.window >= 0 else True)
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        answers.append(torch.einsum("hqk,khv->qhv", weights, v))
    return torch.cat(answers)

"""Prefill attention: a causal chunk of new tokens behind cached ones, with PyTorch's own kernel (SDPA)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from benchmark.gpu.decode import TOLERANCE, WrongKernel
from benchmark.gpu.layer import Layer
from benchmark.gpu.machine import Machine
from benchmark.gpu.points import PREFILL, Point
from benchmark.gpu.timing import Work
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention


def measure(machine: Machine, layer: Layer, chunks: Sequence[tuple[int, int]]) -> Iterator[Point]:
    """Time one layer's attention for each chunk of (new, cached) tokens."""
    for new, cached in chunks:
        seconds = machine.clock.seconds(attention(*_inputs(machine, layer, new, cached)))
        yield Point(PREFILL, seconds, requests=1, new_tokens=new, cached_tokens=cached)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Work:
    """Each new token attends to the cached ones, the new ones before it and itself. Heads come first."""
    new, tokens = query.shape[-2], key.shape[-2]
    mask: Any = None if new == tokens else causal_lower_right(new, tokens)

    def work() -> torch.Tensor:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)

    return work


def check(machine: Machine, layer: Layer) -> float:
    """Compare the kernel with plain PyTorch; the largest difference.

    Raises:
        WrongKernel: it is too large.
    """
    differences = []
    for new, cached in ((65, 0), (40, 88)):
        query, key, value = _inputs(machine, layer, new, cached)
        scores = query.float() @ key.float().mT * query.shape[-1] ** -0.5
        hidden = torch.ones(new, new + cached, dtype=torch.bool, device=query.device).triu(cached + 1)
        plain = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value.float()
        computed: Any = attention(query, key, value)()
        differences.append(float((computed.float() - plain).abs().max()))
    if not max(differences) <= TOLERANCE:
        raise WrongKernel(f"prefill attention differs from plain PyTorch by {max(differences):.3g}")
    return max(differences)


def _inputs(machine: Machine, layer: Layer, new: int, cached: int) -> tuple[torch.Tensor, ...]:
    """Query, key and value, (1, heads, tokens, dim).

    KV heads are repeated: not every kernel knows groups of heads, and prefill is limited by compute.
    """
    options: Any = {"device": machine.device, "dtype": machine.dtype}
    query = torch.randn(1, layer.heads, new, layer.head_dim, **options)
    kv = torch.randn(2, 1, layer.kv_heads, new + cached, layer.head_dim, **options)
    key, value = kv.repeat_interleave(layer.heads // layer.kv_heads, 2)
    return query, key, value

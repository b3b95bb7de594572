"""Decode attention over a paged KV cache: a Triton kernel of our own, and the same in plain PyTorch.

A request's tokens are divided among programs, each of which leaves its part's output and the logarithm of its
sum of exponentials; a second kernel joins the parts. Keys and values are read once, by all query heads of
their group together.

Shapes: queries (requests, heads, dim); keys and values (pages, PAGE, kv_heads, dim); table (requests, pages
of the longest); lengths (requests,), in tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PAGE = 16
"""Tokens of a page."""

BLOCK = 64
"""Tokens that a program reads at a time."""

LEAST_ROWS = 16
"""Rows of a product of tensor cores at least; groups of fewer query heads are filled up."""


@triton.jit
def _parts_kernel(
    queries, keys, values, table, lengths, outputs, sums, scale, table_stride, part_tokens, parts,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    request, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads = tl.num_programs(1)
    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIM)
    first = (request * kv_heads + head) * GROUP
    in_group = rows[:, None] < GROUP
    query = tl.load(queries + (first + rows)[:, None] * DIM + dims[None, :], mask=in_group, other=0.0)
    begin = part * part_tokens
    end = tl.minimum(begin + part_tokens, tl.load(lengths + request))
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    output = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(begin, end, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        inside = tokens < end
        page = tl.load(table + request * table_stride + tokens // PAGE, mask=inside, other=0)
        at = ((page.to(tl.int64) * PAGE + tokens % PAGE) * kv_heads + head) * DIM
        where = at[:, None] + dims[None, :]
        key = tl.load(keys + where, mask=inside[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key)) * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        above = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - above[:, None])
        kept = tl.exp(highest - above)
        value = tl.load(values + where, mask=inside[:, None], other=0.0)
        output = output * kept[:, None] + tl.dot(weights.to(value.dtype), value)
        total = total * kept + tl.sum(weights, 1)
        highest = above
    some = total > 0.0  # a short request leaves its last programs nothing
    total = tl.where(some, total, 1.0)
    left = (first + rows) * parts + part
    tl.store(outputs + left[:, None] * DIM + dims[None, :], output / total[:, None], mask=in_group)
    tl.store(sums + left, tl.where(some, highest + tl.log(total), float("-inf")), mask=rows < GROUP)


@triton.jit
def _join_kernel(outputs, sums, joined, parts, DIM: tl.constexpr):
    head = tl.program_id(0)
    dims = tl.arange(0, DIM)
    highest = tl.load(sums + head * parts)  # the first part is never empty
    for part in range(1, parts):
        highest = tl.maximum(highest, tl.load(sums + head * parts + part))
    total = 0.0
    output = tl.zeros([DIM], tl.float32)
    for part in range(0, parts):
        weight = tl.exp(tl.load(sums + head * parts + part) - highest)
        output += weight * tl.load(outputs + (head * parts + part) * DIM + dims)
        total += weight
    tl.store(joined + head * DIM + dims, (output / total).to(joined.dtype.element_ty))


def paged_decode(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    parts: int,
) -> torch.Tensor:
    """Attention of one query for each request to its whole KV cache; (requests, heads, dim).

    Args:
        parts: programs among which each request's tokens are divided.
    """
    requests, heads, dim = queries.shape
    kv_heads = keys.shape[2]
    longest = table.shape[1] * PAGE
    part_tokens = triton.cdiv(triton.cdiv(longest, parts), BLOCK) * BLOCK
    outputs = torch.empty(requests, heads, parts, dim, dtype=torch.float32, device=queries.device)
    sums = torch.empty(requests, heads, parts, dtype=torch.float32, device=queries.device)
    joined = torch.empty_like(queries)
    group = heads // kv_heads
    rows = max(LEAST_ROWS, triton.next_power_of_2(group))
    _parts_kernel[(requests, kv_heads, parts)](
        queries, keys, values, table, lengths, outputs, sums, dim**-0.5, table.shape[1], part_tokens, parts,
        GROUP=group, ROWS=rows, DIM=dim, PAGE=PAGE, BLOCK=BLOCK,
    )  # fmt: skip
    _join_kernel[(requests * heads,)](outputs, sums, joined, parts, DIM=dim)
    return joined


def plain_decode(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """What `paged_decode` computes, one request after another, in float32."""
    group = queries.shape[1] // keys.shape[2]
    outputs = []
    for query, pages, length in zip(queries.float(), table, lengths.tolist(), strict=True):
        key, value = (
            pool[pages.long()].flatten(0, 1)[:length].float().repeat_interleave(group, 1)
            for pool in (keys, values)
        )
        scores = torch.einsum("hd,thd->ht", query, key) * query.shape[-1] ** -0.5
        outputs.append(torch.einsum("ht,thd->hd", scores.softmax(-1), value))
    return torch.stack(outputs).to(queries.dtype)

"""The resource-aware prefix tree (paper 5.1) as arrays over sorted prompts.

Sorting the prompts and taking the longest common prefix of neighbours gives the radix tree without
inserting one prompt after another: a node is a maximal interval of the order whose prompts share a
prefix, so every annotation is a difference of prefix sums, exact after any insertion or removal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@njit(cache=True, nogil=True)
def _intervals(lcp):  # type: ignore[no-untyped-def]
    """LCP intervals as (lo, hi, depth), one row each, in no particular order; the root comes first."""
    n = len(lcp)
    lo = np.empty(n + 1, np.int64)
    hi = np.empty(n + 1, np.int64)
    depth = np.empty(n + 1, np.int64)
    lo[0], hi[0], depth[0] = 0, n, 0
    count = 1
    stack_lo = np.empty(n + 1, np.int64)
    stack_depth = np.empty(n + 1, np.int64)
    top = 0
    stack_lo[0], stack_depth[0] = 0, 0
    for i in range(1, n + 1):
        shared = lcp[i] if i < n else 0
        begin = i - 1
        while stack_depth[top] > shared:
            lo[count], hi[count], depth[count] = stack_lo[top], i, stack_depth[top]
            count += 1
            begin = stack_lo[top]
            top -= 1
        if stack_depth[top] < shared:
            top += 1
            stack_lo[top], stack_depth[top] = begin, shared
    return lo[:count], hi[:count], depth[:count]


@njit(cache=True, nogil=True)
def _parents(lo, hi, num_requests):  # type: ignore[no-untyped-def]
    """Parents of preordered intervals, and of every request the deepest interval that holds it."""
    parent = np.full(len(lo), -1, np.int64)
    request_parent = np.zeros(num_requests, np.int64)
    stack = np.zeros(len(lo) + 1, np.int64)
    top = 0
    request = 0
    for node in range(1, len(lo) + 1):
        boundary = lo[node] if node < len(lo) else num_requests
        while True:
            stop = min(hi[stack[top]], boundary)
            while request < stop:
                request_parent[request] = stack[top]
                request += 1
            if top == 0 or hi[stack[top]] > boundary:
                break
            top -= 1
        if node < len(lo):
            parent[node] = stack[top]
            top += 1
            stack[top] = node
    return parent, request_parent


def _range_sums(values: ArrayLike, lo: Ints, hi: Ints) -> Floats:
    """Sum of values[lo:hi] for every pair of bounds."""
    sums: Floats = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(sums[hi] - sums[lo], np.float64)


@dataclass(frozen=True, slots=True)
class Nodes:
    """The inner nodes of a radix tree, in preorder, and where its requests hang; as in the tree below.

    Attributes:
        lo, hi, depth, parent: (nodes,); request_parent: (n,).
    """

    lo: Ints
    hi: Ints
    depth: Ints
    parent: Ints
    request_parent: Ints


def nodes_of(lcp: Ints) -> Nodes:
    """The radix tree of sorted prompts, of which each shares `lcp`, (n,), tokens with the one before it."""
    lo, hi, depth = _intervals(lcp)
    preorder = np.lexsort((-hi, lo))
    # The root must come first even when a single child spans all requests.
    if len(lo) > 1:
        spans = preorder[(lo[preorder] == lo[0]) & (hi[preorder] == hi[0])]
        preorder[: len(spans)] = spans[np.argsort(depth[spans], kind="stable")]
    lo, hi, depth = lo[preorder], hi[preorder], depth[preorder]
    return Nodes(lo, hi, depth, *_parents(lo, hi, len(lcp)))


@dataclass(frozen=True, slots=True)
class ResourceAwarePrefixTree:
    """Radix tree of n requests in sorted order, with resource totals per node.

    Nodes are inner nodes in preorder (a parent's number is smaller than its children's); node 0 is the
    root. The leaves are the requests themselves: identical prompts, or a prompt that is a prefix of
    others, hang from the same node with an empty edge.

    >>> from sglang.srt.blend.core.cost.hardware import load_hardware
    >>> from sglang.srt.blend.core.cost.model_shape import ModelShape
    >>> from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts
    >>> llama_3_8b = ModelShape(
    ...     gemm_params=7.5e9, weight_bytes=15e9, layers=32, attention_width=4096, kv_bytes=4096
    ... )
    >>> prompts = SortedPrompts.of([1, 2, 3, 1, 2, 4, 1, 5], [0, 3, 6, 8])  # 1 2 3, then 1 2 4, then 1 5
    >>> cost = CostModel(llama_3_8b, load_hardware("a100-80gb"))
    >>> tree = prompts.tree(np.array([3, 3, 2]), np.array([10, 10, 10]), cost)
    >>> tree.depth.tolist(), tree.parent.tolist()  # the root, below it "1", below that "1 2"
    ([0, 1, 2], [-1, 0, 1])
    >>> tree.request_parent.tolist()
    [2, 2, 1]
    >>> tree.node_kv_tokens.tolist(), tree.shared_tokens  # 5 prompt tokens and 30 of output
    ([35, 35, 24], 3)

    Attributes:
        lcp: (n,) tokens shared with the previous request of the order.
        lo, hi: (nodes,) the requests lo..hi-1 of the order lie below the node.
        depth: (nodes,) tokens from the root to the node's end.
        parent: (nodes,) parent node, -1 for the root.
        request_parent: (n,) node from which the request hangs.
        comp, mem: (n,) seconds of each request alone.
        kv_tokens: (n,) prompt plus output tokens.
        saved: (n,) compute seconds that sharing the prefix with the previous request saves.
        node_comp, node_saved, node_mem, node_requests, node_kv_tokens: (nodes,) totals below the node;
            KV tokens count shared prefixes once.
    """

    lcp: Ints
    lo: Ints
    hi: Ints
    depth: Ints
    parent: Ints
    request_parent: Ints
    comp: Floats
    mem: Floats
    kv_tokens: Ints
    saved: Floats
    node_comp: Floats
    node_saved: Floats
    node_mem: Floats
    node_requests: Ints
    node_kv_tokens: Ints

    @property
    def num_requests(self) -> int:
        """Requests in the tree, n."""
        return len(self.lcp)

    @property
    def shared_tokens(self) -> int:
        """Prompt tokens that a depth-first walk does not compute again: the most that sharing can give."""
        return int(self.lcp.sum())

    def _check(self) -> None:
        """AssertionError unless nodes nest in preorder and requests hang from the deepest that has them."""
        nodes, n = len(self.parent), self.num_requests
        assert (self.parent[0], self.lo[0], self.hi[0], self.depth[0]) == (-1, 0, n, 0)
        above = self.parent[1:]
        assert np.all((above >= 0) & (above < np.arange(1, nodes)))
        assert np.all((self.lo[1:] >= self.lo[above]) & (self.hi[1:] <= self.hi[above]))
        assert np.all(self.depth[1:] > self.depth[above])
        assert np.all(self.node_requests[1:] >= 2)
        for node in range(nodes):  # in preorder, so the last that covers a request is the deepest
            inside = slice(self.lo[node], self.hi[node])
            assert np.all(self.lcp[inside][1:] >= self.depth[node])
            assert np.all(self.request_parent[inside] >= node)
        hanging = np.arange(n)
        assert np.all((self.lo[self.request_parent] <= hanging) & (hanging < self.hi[self.request_parent]))


def densities(comp: ArrayLike, mem: ArrayLike) -> Floats:
    """Comp / Mem of seconds of any shape; infinite where nothing is decoded, 0 where there is nothing at all.

    >>> densities([6.0, 6.0, 0.0], [2.0, 0.0, 0.0]).tolist()
    [3.0, inf, 0.0]
    """
    comp, mem = np.asarray(comp, np.float64), np.asarray(mem, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(mem > 0, comp / mem, np.where(comp > 0, np.inf, 0.0)))


def build_tree(
    lcp: Ints, prompt: Ints, output: Ints, cost: CostModel, *, extra_comp: Floats | None = None
) -> ResourceAwarePrefixTree:
    """The annotated prefix tree of sorted prompts, O(n log n); see `SortedPrompts.tree`.

    Args:
        lcp: (n,) tokens that each prompt shares with the one before it.
        prompt, output: (n,) tokens, in the same order.
        extra_comp: (n,) compute seconds beside the decoder's (a vision encoder), if any.
    """
    nodes = nodes_of(lcp)
    lo, hi = nodes.lo, nodes.hi
    comp = cost.comp(prompt, output)
    if extra_comp is not None:
        comp = comp + extra_comp
    mem = cost.mem(prompt, output)
    saved = cost.prefix_comp(lcp)
    kv_tokens = np.asarray(prompt + output, np.int64)
    inner = np.minimum(lo + 1, hi)  # the first request below a node has nobody to share with
    return ResourceAwarePrefixTree(
        lcp=lcp,
        lo=lo,
        hi=hi,
        depth=nodes.depth,
        parent=nodes.parent,
        request_parent=nodes.request_parent,
        comp=comp,
        mem=mem,
        kv_tokens=kv_tokens,
        saved=saved,
        node_comp=_range_sums(comp, lo, hi),
        node_saved=_range_sums(saved, inner, hi),
        node_mem=_range_sums(mem, lo, hi),
        node_requests=hi - lo,
        node_kv_tokens=(_range_sums(kv_tokens, lo, hi) - _range_sums(lcp, inner, hi)).astype(np.int64),
    )

"""What a pool is made of: assumed answers, groups that share a prefix, a sample that stands for all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.batch.plan.prompts import BadLine, Prompts
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree, densities
from sglang.srt.blend.core.pool.request_table import PRIOR_OUTPUT_TOKENS
from sglang.srt.blend.core.pool.workload import Workload

Ints = NDArray[np.int64]

SHARED_PART = 0.25
"""A group's prefix is at least this part of its prompts: a chat template's first words make no group."""

LARGEST_PIECE = 1 / 64
"""Share of a sample up to which requests with a common prefix are taken or left together."""


@dataclass(frozen=True)
class Answers:
    """How long the answers are assumed to be, and on what grounds. Counts are requests.

    Attributes:
        fixed: the request itself fixes the length (ignore_eos, or min_tokens as large as max_tokens).
        capped: max_tokens is what is known; assumed are max_tokens, or `assumed` where that is less.
        open: neither; `assumed` tokens.
        assumed: None where every length of `capped` is max_tokens.
    """

    fixed: int
    capped: int
    open: int
    assumed: int | None
    open_assumed: int

    def text(self) -> str:
        capped = "as long as max_tokens allows" if self.assumed is None else f"{self.assumed:,} or max_tokens"
        parts = [
            (self.fixed, "fixed by the request"),
            (self.capped, capped),
            (self.open, f"without max_tokens: {self.open_assumed:,}"),
        ]
        return ", ".join(f"{count:,} {what}" for count, what in parts if count)


@dataclass(frozen=True)
class Group:
    """Requests that share a prefix, on the whole a large part of their prompts.

    Attributes:
        line, custom_id: of one of them, the first in the file.
        prefix: tokens that all of them share.
        prompt, output: mean tokens.
        sharing: part of the group's prompt tokens that need not be computed, 0 to 1.
        density: Comp / Mem of the group with that sharing; infinite where nothing is decoded.
        work: its part of the pool's Comp + Mem, 0 to 1.
    """

    requests: int
    line: int
    custom_id: str
    prefix: int
    prompt: float
    output: float
    sharing: float
    density: float
    work: float


def assume_answers(
    prompts: Prompts, *, output_tokens: int | None, longest: int
) -> tuple[Workload, Answers, tuple[BadLine, ...], Ints]:
    """The pool with assumed output lengths.

    Args:
        longest: tokens that one request may hold; SGLang cuts longer answers off and refuses prompts that
            leave no room for any.

    Returns:
        The workload; the assumptions; lines refused; index into `prompts` of each request.
    """
    length = np.diff(prompts.offsets)
    fits = length < longest
    refused = tuple(
        BadLine(
            int(prompts.line[i]),
            prompts.custom_ids[i],
            "prompt_too_long",
            f"line {prompts.line[i]}: a prompt of {length[i]:,} tokens; there is room for {longest:,}",
        )
        for i in np.flatnonzero(~fits)
    )
    open_tokens = output_tokens or PRIOR_OUTPUT_TOKENS
    cap, known = prompts.cap, prompts.known
    likely = np.where(cap > 0, np.minimum(cap, output_tokens or cap), open_tokens)
    room = np.maximum(longest - length, 1)
    output = np.maximum(np.minimum(np.where(known > 0, known, likely), room), 1).astype(np.int32)
    limit = np.minimum(np.where(known > 0, known, np.where(cap > 0, cap, room)), room)
    whole = Workload(
        tokens=prompts.tokens,
        offsets=prompts.offsets,
        output=output,
        max_new_tokens=np.maximum(limit, 1).astype(np.int32),
        known=known > 0,
        source=np.zeros(len(length), np.int16),
        names=("batch",),
    )
    kept = np.flatnonzero(fits)
    answers = Answers(
        fixed=int(np.sum(known[kept] > 0)),
        capped=int(np.sum((known[kept] == 0) & (cap[kept] > 0))),
        open=int(np.sum((known[kept] == 0) & (cap[kept] == 0))),
        assumed=output_tokens,
        open_assumed=open_tokens,
    )
    return whole if fits.all() else whole.take(kept), answers, refused, kept


def find_groups(workload: Workload, prompts: Prompts, kept: Ints, cost: CostModel) -> list[Group]:
    """Groups of two or more, those with most work first.

    A group is the largest subtree of the prefix tree whose prefix makes up `SHARED_PART` of its prompts.

    Args:
        kept: (n,) index into `prompts` of each request of the workload.
    """
    tree, order = workload.tree(cost), workload.depth_first_order()
    prompt, output = workload.prompt[order], workload.output[order]
    mean = _interval_sums(prompt, tree) / tree.node_requests
    nodes = _topmost(tree, tree.depth >= SHARED_PART * mean)
    shared = _interval_sums(tree.lcp, tree) - tree.lcp[tree.lo]  # the first has nobody to share with
    comp, mem = tree.node_comp - tree.node_saved, tree.node_mem
    whole = float(comp[0] + mem[0])
    outputs = _interval_sums(output, tree)
    groups = []
    for node in nodes[np.argsort(-(comp + mem)[nodes], kind="stable")].tolist():
        members = order[tree.lo[node] : tree.hi[node]]
        first = int(kept[members.min()])
        requests = len(members)
        groups.append(
            Group(
                requests=requests,
                line=int(prompts.line[first]),
                custom_id=prompts.custom_ids[first],
                prefix=int(tree.depth[node]),
                prompt=float(mean[node]),
                output=float(outputs[node] / requests),
                sharing=float(shared[node] / max(mean[node] * requests, 1)),
                density=float(densities(comp[node], mem[node])),
                work=float((comp[node] + mem[node]) / whole) if whole else 0.0,
            )
        )
    return groups


def sample(workload: Workload, limit: int, cost: CostModel) -> Ints:
    """Ascending indices of about `limit` requests that stand for all.

    Subtrees of up to LARGEST_PIECE * limit requests stay whole, so that their sharing stays. They are taken
    at regular distances along their densities, so that the sample's density is the pool's.
    """
    n = len(workload)
    if n <= limit:
        return np.arange(n)
    tree, order = workload.tree(cost), workload.depth_first_order()
    small = tree.node_requests <= max(int(limit * LARGEST_PIECE), 1)
    small[0] = False
    first = np.ones(n, np.bool_)  # of its piece, in depth-first order
    for node in _topmost(tree, small).tolist():
        first[tree.lo[node] + 1 : tree.hi[node]] = False
    piece = np.cumsum(first) - 1
    comp = np.bincount(piece, tree.comp - tree.saved * ~first)
    ranked = np.argsort(-densities(comp, np.bincount(piece, tree.mem)), kind="stable")
    taken = np.zeros(len(ranked), np.bool_)
    owed, fraction = 0.0, limit / n
    for number, size in zip(ranked.tolist(), np.bincount(piece)[ranked].tolist(), strict=True):
        owed += fraction * size
        if owed >= size / 2:
            taken[number] = True
            owed -= size
    return np.sort(order[taken[piece]])


def _topmost(tree: ResourceAwarePrefixTree, wanted: NDArray[np.bool_]) -> Ints:
    """Wanted nodes of two or more requests that lie below no other wanted node."""
    nodes, end = [], 0
    for node in np.flatnonzero(wanted & (tree.node_requests > 1)).tolist():  # preorder
        if tree.lo[node] >= end:
            nodes.append(node)
            end = tree.hi[node]
    return np.array(nodes, np.int64)


def _interval_sums(values: NDArray[np.integer], tree: ResourceAwarePrefixTree) -> NDArray[np.float64]:
    """(nodes,) sum of a value per sorted request over the requests below each node."""
    sums = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return np.asarray(sums[tree.hi] - sums[tree.lo], np.float64)

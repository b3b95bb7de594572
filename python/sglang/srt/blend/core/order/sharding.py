"""Data-parallel parts of a pool: equal work, equal density, whole subtrees (paper 5.5).

One tree is built for the pool and put in density order. It is cut from the root down until no piece
is more than a small share of a replica's work. The dual scanner takes the pieces from both ends, so
what it has taken always has the root's density, and each goes to the replica that has least of what the
piece is made of. A replica then plans its part by itself, with its own `Planner`.

Comp and Mem are balanced one by one. Equal parts of both are equal work to any engine, whether it adds
the two up or hides one behind the other, and equal density too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.order.ordering import order_by_density
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree, densities
from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts
from sglang.srt.blend.core.step.dual_scan import ScanOrder, scan_to_the_end

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Pieces in a part's work: a larger subtree is cut. The last pieces dealt decide how equal the parts are.
_PIECES = 256
# How far a part may get ahead to keep a subtree together, as a share of what it will still be given.
# It shrinks to nothing with what is left, so who got ahead early is caught up with.
_HEAD_START = 0.25
# A prefix is cheap if it costs less than this share of the work of a piece below it.
_CHEAP = 0.01
# Rounds in which the scanner takes the pool: each has the root's density.
_ROUNDS = 64
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a pool that one replica answers.

    Attributes:
        requests: (m,) indices into the pool, ascending.
        comp: compute seconds after all sharing that is possible among its own requests.
        mem: seconds of KV reads.
        shared_tokens: prompt tokens that a depth-first walk of the part does not compute.
    """

    requests: Ints
    comp: float
    mem: float
    shared_tokens: int

    @property
    def work(self) -> float:
        """Comp + Mem: seconds that the part takes without overlap, at peak rates."""
        return self.comp + self.mem

    @property
    def density(self) -> float:
        """Comp / Mem, dimensionless; infinite when nothing decodes, 0 when the part is empty."""
        return float(densities(self.comp, self.mem))


@dataclass(frozen=True, slots=True)
class Shards:
    """A pool divided among replicas.

    Attributes:
        parts: one for each replica; some are empty when there are too few requests.
        possible_tokens: prompt tokens that the undivided pool shares.
    """

    parts: tuple[Shard, ...]
    possible_tokens: int

    @property
    def shared_tokens(self) -> int:
        """Prompt tokens that need not be computed because they are shared within a part."""
        return sum(part.shared_tokens for part in self.parts)

    @property
    def sharing_kept(self) -> float:
        """Share of the undivided pool's sharing that the parts still have, in [0, 1]; 1 if there was none."""
        return self.shared_tokens / self.possible_tokens if self.possible_tokens else 1.0

    @property
    def imbalance(self) -> float:
        """How far the largest part's work is above the mean, as a share of the mean."""
        total = sum(part.work for part in self.parts)
        return max(part.work for part in self.parts) * len(self.parts) / total - 1.0 if total else 0.0


def shard(
    tokens: NDArray[np.int32],
    offsets: Ints,
    output: NDArray[np.integer],
    cost: CostModel,
    parts: int,
    *,
    extra_compute: Floats | None = None,
    namespace: NDArray[np.integer] | None = None,
) -> Shards:
    """Divide a pool among equal replicas (paper 5.5); equal arguments give equal parts.

    Two questions about each of four documents, for two replicas:

    >>> from sglang.srt.blend.core.cost.hardware import load_hardware
    >>> from sglang.srt.blend.core.cost.model_shape import ModelShape
    >>> llama_3_8b = ModelShape(
    ...     gemm_params=7.5e9, weight_bytes=15e9, layers=32, attention_width=4096, kv_bytes=4096
    ... )
    >>> cost = CostModel(llama_3_8b, load_hardware("a100-80gb"))
    >>> documents = [range(start, start + 1000) for start in (0, 2000, 4000, 6000)]
    >>> tokens = np.concatenate([[*text, 9000 + question] for text in documents for question in (0, 1)])
    >>> shards = shard(tokens, np.arange(9) * 1001, np.full(8, 50), cost, 2)
    >>> [part.requests.tolist() for part in shards.parts], shards.sharing_kept
    ([[2, 3, 6, 7], [0, 1, 4, 5]], 1.0)

    Args:
        tokens: int32, all prompts back to back; request i is tokens[offsets[i]:offsets[i + 1]].
        offsets: int64 (n + 1,).
        output: (n,) output tokens: known ones, or estimates (`pool.output_length`).
        cost: of one replica.
        parts: replicas.
        extra_compute: (n,) seconds beside the decoder's own, such as a vision encoder.
        namespace: (n,) prompts of different namespaces share nothing; 0 by default.

    Raises:
        ValueError: parts is below 1, or the arrays differ in length.
    """
    n = len(offsets) - 1
    if parts < 1:
        raise ValueError(f"parts must be at least 1, got {parts}")
    for name, values in (("output", output), ("extra_compute", extra_compute), ("namespace", namespace)):
        if values is not None and len(values) != n:
            raise ValueError(f"{name} has {len(values)} entries for {n} requests")
    prompts = SortedPrompts.of(
        tokens, offsets, None if namespace is None else np.asarray(namespace, np.int32)
    )
    order = prompts.slots
    tree = prompts.tree(
        np.diff(offsets)[order],
        np.asarray(output, np.int64)[order],
        cost,
        extra_comp=None if extra_compute is None else np.asarray(extra_compute, np.float64)[order],
    )
    owner = _assign(tree, cost, parts)
    return Shards(
        tuple(_shard(prompts, tree, cost, owner == part) for part in range(parts)),
        possible_tokens=tree.shared_tokens,
    )


def _shard(
    prompts: SortedPrompts, tree: ResourceAwarePrefixTree, cost: CostModel, mine: NDArray[np.bool_]
) -> Shard:
    """Exact totals of some of the pool's sorted requests, which share among themselves only."""
    part = prompts.subset(mine)
    return Shard(
        requests=np.sort(part.slots),
        comp=float((tree.comp[mine] - cost.prefix_comp(part.common)).sum()),
        mem=float(tree.mem[mine].sum()),
        shared_tokens=int(part.common.sum()),
    )


def _assign(tree: ResourceAwarePrefixTree, cost: CostModel, parts: int) -> Ints:
    """(n,) part of each of the tree's sorted requests."""
    # Splits would part relatives for the sake of one schedule; a replica's planner does that for its own.
    density = order_by_density(tree, cost, split=False)
    work = np.empty(tree.num_requests)
    work[density.order] = density.comp + tree.mem[density.order]
    sums = np.concatenate([[0.0], np.cumsum(work)])
    node_work, share = sums[tree.hi] - sums[tree.lo], float(sums[-1]) / parts
    limit = share / _PIECES if parts > 1 else np.inf
    whole = _largest_subtrees(tree.parent, node_work, limit)
    piece, holder = _pieces(density.order, tree.parent, tree.request_parent, whole, node_work, work, limit)
    comp = np.asarray(np.bincount(piece, density.comp), np.float64)
    mem = np.asarray(np.bincount(piece, tree.mem[density.order]), np.float64)
    # Shares of the pool's Comp and Mem: their difference is 0 for a piece of the root's density.
    comp_share, mem_share = comp / max(float(comp.sum()), _TINY), mem / max(float(mem.sum()), _TINY)
    family, again = _families(tree, cost, holder, node_work, comp + mem, share)
    part = _deal(
        scanned(comp, mem),
        comp_share + mem_share,
        comp_share - mem_share,
        family,
        again / max(float(comp.sum()), _TINY),
        len(tree.depth),
        parts,
        _HEAD_START,
    )
    owner = np.empty(tree.num_requests, np.int64)
    owner[density.order] = part[piece]
    return owner


def scanned(comp: Floats, mem: Floats) -> Ints:
    """Pieces of (n,) seconds each in the order in which the dual scanner takes them.

    To the scanner a piece is a request that holds its Mem for one step.
    """
    pieces = len(comp)
    scan = ScanOrder(
        slots=np.arange(pieces),
        density=densities(comp, mem),
        new_tokens=np.zeros(pieces, np.int64),
        output=np.ones(pieces, np.int64),
        share=mem,
        comp=comp,
        mem=mem,
    )
    return scan_to_the_end(scan, float(mem.sum()) / _ROUNDS)[0]


def _families(
    tree: ResourceAwarePrefixTree,
    cost: CostModel,
    holder: Ints,
    node_work: Floats,
    work: Floats,
    share: float,
) -> tuple[Ints, Floats]:
    """Which pieces should stay together, and what it costs if they do not.

    Returns:
        (pieces,) the largest subtree around each that a part can take at once. Where there is none all
        parts will see the piece's node: then it is the node, or -1 where its prefix costs next to nothing,
        such as a system prompt above long answers, which are better spread.
        (pieces,) seconds of the prefix that another part would compute again; 0 where all will.
    """
    family = _largest_subtrees(tree.parent, node_work, _HEAD_START * share)[holder]
    prefix = cost.prefix_comp(tree.depth)
    again = np.where(family >= 0, prefix[holder] - prefix[tree.parent[family]], 0.0)
    everywhere = np.where((prefix[holder] >= _CHEAP * work) & (holder > 0), holder, -1)
    return np.where(family >= 0, family, everywhere), again


@njit(cache=True)
def _largest_subtrees(parent, node_work, limit):  # type: ignore[no-untyped-def]
    """The largest subtree of at most `limit` seconds that each node belongs to, -1 if there is none."""
    largest = np.full(len(parent), -1, np.int64)
    for node in range(1, len(parent)):
        above = largest[parent[node]]
        if above >= 0:
            largest[node] = above
        elif node_work[node] <= limit:
            largest[node] = node
    return largest


@njit(cache=True)
def _pieces(order, parent, request_parent, whole, node_work, work, limit):  # type: ignore[no-untyped-def]
    """Cut all nodes that are not part of a `whole` subtree.

    A piece is one or more neighbours below one node, each a request or a whole subtree, of at most
    `limit` seconds together. Children of the root share nothing and stay apart.

    Returns:
        (n,) piece of each request along the density order, ascending; (pieces,) the node each hangs from.
    """
    nodes = len(parent)
    piece = np.empty(len(order), np.int64)
    holder = np.empty(len(order), np.int64)
    number, held, last = -1, 0.0, np.int64(-1)
    for position in range(len(order)):
        request = order[position]
        above = request_parent[request]
        item, size = nodes + request, work[request]
        if whole[above] >= 0:
            item, size = whole[above], node_work[whole[above]]
            above = parent[item]
        if item != last:
            if number < 0 or above == 0 or above != holder[number] or held + size > limit:
                number += 1
                holder[number] = above
                held = 0.0
            held += size
            last = item
        piece[position] = number
    return piece, holder[: number + 1]


@njit(cache=True)
def _deal(dealt, work, excess, family, again, nodes, parts, head_start):  # type: ignore[no-untyped-def]
    """Part of each piece: the one that has least of what the piece is made of.

    The scalar product of a piece and a part's loads is what the piece adds to the sum of squared loads.
    A piece follows the last one of its family as long as what that part is ahead in work and in excess, of
    the mean or of the part that is due, can be made up for by what is left, or is less than what another
    part would compute again.

    Args:
        dealt: pieces in the order in which they are dealt.
        work, excess: (pieces,) Comp + Mem and Comp - Mem, both in shares of the pool's.
        family, again: (pieces,) see `_families`; `again` as a share of the pool's Comp.
        head_start: share of what is left for a part that it may be ahead.
    """
    part = np.empty(len(dealt), np.int64)
    works, excesses = np.zeros(parts), np.zeros(parts)
    last = np.full(nodes, -1, np.int64)
    work_left, excess_left = work.sum(), np.abs(excess).sum()
    for piece in dealt:
        due = _least_of(work[piece], excess[piece], works, excesses)
        chosen, more = due, 0.0
        if family[piece] >= 0:
            home = last[family[piece]]
            if home >= 0 and home != due:
                more = again[piece]
                slack_work = head_start * work_left / parts + more
                slack_excess = head_start * excess_left / parts + more
                if (
                    _lead(works, home, due) <= slack_work
                    and _lead(np.sign(excess[piece]) * excesses, home, due) <= slack_excess
                ):
                    chosen, more = home, 0.0
            last[family[piece]] = chosen
        part[piece] = chosen
        works[chosen] += work[piece] + more
        excesses[chosen] += excess[piece] + more
        work_left -= work[piece]
        excess_left -= abs(excess[piece])
    return part


@njit(cache=True)
def _least_of(work, excess, works, excesses):  # type: ignore[no-untyped-def]
    """The part whose loads have the least scalar product with a piece, the first of several."""
    best, least = 0, np.inf
    for candidate in range(len(works)):
        load = work * works[candidate] + excess * excesses[candidate]
        if load < least:
            best, least = candidate, load
    return best


@njit(cache=True)
def _lead(loads, home, due):  # type: ignore[no-untyped-def]
    """How far one part is ahead of the mean, or of the part that is due if that has more than the mean."""
    return loads[home] - max(loads[due], loads.mean())

"""Layer-wise sort, conditional node split and merge of the prefix tree (paper 5.2, Algorithms 1 and 2).

Items are what is sorted among siblings: 0..nodes-1 are the tree's inner nodes, nodes..nodes+n-1 its
requests. Sorting permutes siblings only, so sharing is untouched. A split cuts a node in two: some of its
children move below a copy of it that hangs from the root. They go on sharing the prefix among themselves,
so a cut costs that prefix once, however many requests move.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.order.sharing_account import NOTHING_BEFORE, Sharing
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree, densities

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DensityOrder:
    """The requests of a tree from compute-intensive to memory-intensive (paper 5.2).

    Four requests share a prefix of 100 tokens, and one of them answers at length. It moves to the memory
    side behind its own copy of the prefix, if that may be computed twice:

    >>> from sglang.srt.blend.core.cost.hardware import load_hardware
    >>> from sglang.srt.blend.core.cost.model_shape import ModelShape
    >>> from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts
    >>> llama_3_8b = ModelShape(
    ...     gemm_params=7.5e9, weight_bytes=15e9, layers=32, attention_width=4096, kv_bytes=4096
    ... )
    >>> cost = CostModel(llama_3_8b, load_hardware("a100-80gb"))
    >>> tokens = np.concatenate([[*range(100), 200 + i] for i in range(4)] + [[500]])
    >>> prompts = SortedPrompts.of(tokens, np.array([0, 101, 202, 303, 404, 405]))
    >>> lengths, output = np.array([101, 101, 101, 101, 1]), np.array([5, 9000, 5, 5, 500])
    >>> tree = prompts.tree(lengths, output, cost)
    >>> whole = order_by_density(tree, cost)
    >>> whole.order.tolist(), whole.shared_tokens
    ([4, 0, 2, 3, 1], 300)
    >>> split = order_by_density(tree, cost, sharing_budget=0.6)
    >>> split.order.tolist(), split.shared_tokens, split.splits
    ([0, 2, 3, 4, 1], 200, 1)

    Attributes:
        order: (n,) indices of the tree's requests, highest density first; what follows is along it.
        comp: (n,) compute seconds of each request, a shared prefix divided evenly among those who share it.
        density: (n,) rho of each request: non-increasing unless the budget ran out.
        group: (n,) number of the schedulable group that each request belongs to, ascending.
        group_density: (groups,) rho of each group with its sharing.
        shared: (n,) prompt tokens that each request shares with the one before it.
        splits: nodes cut in two.
    """

    order: Ints
    comp: Floats
    density: Floats
    group: Ints
    group_density: Floats
    shared: Ints
    splits: int

    @property
    def shared_tokens(self) -> int:
        """Prompt tokens that need not be computed in this order."""
        return int(self.shared.sum())


@njit(cache=True, nogil=True)
def _effective_costs(parent, count, prefix_comp, comp, mem):  # type: ignore[no-untyped-def]
    """Compute and memory seconds of every item while the forest is as it is.

    A prefix costs each request below it an even part. So a node's density is the mean of its requests'
    densities, weighted by memory, and lies between their extremes.
    """
    nodes = len(prefix_comp)
    path = np.zeros(nodes, np.float64)  # one request's part of the way from the root
    for node in range(1, nodes):
        above = parent[node]
        if count[node] > 0:
            path[node] = path[above] + (prefix_comp[node] - prefix_comp[above]) / count[node]
    item_comp = np.zeros(len(parent), np.float64)
    item_mem = np.zeros(len(parent), np.float64)
    for request in range(len(comp)):
        above = parent[nodes + request]
        item_comp[nodes + request] = max(comp[request] - prefix_comp[above] + path[above], 0.0)
        item_mem[nodes + request] = mem[request]
        item_comp[above] += item_comp[nodes + request]
        item_mem[above] += mem[request]
    for node in range(nodes - 1, 0, -1):
        item_comp[parent[node]] += item_comp[node]
        item_mem[parent[node]] += item_mem[node]
    return item_comp, item_mem


class _Forest:
    """The tree's items with their current parents, which splits change in place.

    Attributes:
        parent, count: (items,) node above, -1 for the root; requests at or below the item.
        comp, mem, density: (items,) seconds and rho, see `_effective_costs`. Density is rounded to single
            precision, so that noise of summation does not look like disorder.
        leaves: (n,) requests in leaf order.
    """

    def __init__(self, tree: ResourceAwarePrefixTree, cost: CostModel) -> None:
        self.nodes = len(tree.parent)
        self.parent: Ints = np.concatenate([tree.parent, tree.request_parent])
        self.count: Ints = np.concatenate([tree.node_requests, np.ones(tree.num_requests, np.int64)])
        self.depth = tree.depth
        self._prefix_comp = cost.prefix_comp(tree.depth)
        self._request_comp, self._request_mem = tree.comp, tree.mem
        self.sort()

    def sort(self) -> None:
        """Sort the children of every node by density, high to low."""
        self.comp, self.mem = _effective_costs(
            self.parent, self.count, self._prefix_comp, self._request_comp, self._request_mem
        )
        self.density: Floats = densities(self.comp, self.mem).astype(np.float32).astype(np.float64)
        # A stable sort: equal densities keep the sorted prompts' order.
        self._line_up(np.lexsort((-self.density, self.parent)))

    def most_read_first(self, long: float) -> None:
        """Sort again: those with a prefix of `long` tokens or more to themselves before their siblings.

        Of those that are dense, see `_dense_from`, the one that most requests read comes first.
        """
        above = self.parent[1 : self.nodes]
        own = self.depth[1:] - self.depth[above]
        read = np.zeros(len(self.parent), np.int64)
        read[1 : self.nodes] = np.where(own >= long, self.count[1 : self.nodes], 0)
        read[self.density < _dense_from(self, stream=True)] = 0
        self._line_up(np.lexsort((-self.density, -read, self.parent)))

    def _line_up(self, siblings: Ints) -> None:
        self._siblings = siblings
        position = leaf_positions(siblings, self.parent, self.count)[self.nodes :]
        self.leaves: Ints = np.empty(len(position), np.int64)
        self.leaves[position] = np.arange(len(position))

    @property
    def leaf_density(self) -> Floats:
        """rho along the leaf order."""
        return np.asarray(self.density[self.nodes + self.leaves])

    def split(self, budget: int, longest: float) -> tuple[int, int]:
        """Cut nodes whose requests reach into the densities of others, best first, while `budget` lasts.

        Without a budget, repeating this sorts the leaves.

        Args:
            budget: tokens of sharing; longest: tokens of a prefix that may be cut.

        Returns:
            (tokens of sharing spent, nodes cut).
        """
        outlier = _out_of_band(self._siblings, self.parent, self.count, self.density, self.nodes)
        subtrees = _outlier_subtrees(self.parent, self.count, outlier, self.nodes)
        spent, cut = self._cut_off(subtrees, budget, longest)
        if cut == 0:  # whole subtrees cannot part company where all of them are outliers
            requests = self.nodes + np.flatnonzero(outlier)
            spent, cut = self._cut_off(requests[self.parent[requests] > 0], budget, longest)
        return spent, cut

    def _cut_off(self, items: Ints, budget: int, longest: float) -> tuple[int, int]:
        above = self.parent[items]
        # Those denser than their parent move together, and so do those less dense.
        together = 2 * above + (self.density[items] >= self.density[above])
        order = np.argsort(together, kind="stable")
        items = items[order]
        begins = np.diff(together[order], prepend=-1) != 0
        starts = np.flatnonzero(begins)
        ranked = self._rank(items, np.cumsum(begins) - 1, starts)
        ends = np.append(starts[1:], len(items))
        limits = budget, longest
        spent, cut = _cut(items, starts, ends, ranked, limits, self.parent, self.depth, self.count)
        self._insert_copies([items[starts[number] : ends[number]] for number in cut])
        return int(spent), len(cut)

    def _rank(self, items: Ints, bunch: Ints, starts: Ints) -> Ints:
        """Bunches by misplaced work per token of sharing lost, best first.

        Misplaced work is the bunch's seconds times the log distance between its density and that of the
        subtree directly below the root in which it hides.
        """
        comp, mem = np.bincount(bunch, self.comp[items]), np.bincount(bunch, self.mem[items])
        parent = self.parent[items[starts]]
        top = _roots(self.parent, 0)[parent]
        dense, around = np.clip([densities(comp, mem), self.density[top]], 1e-6, 1e6)
        benefit = (comp + mem) * np.abs(np.log(dense / around))
        return np.argsort(-benefit / self.depth[parent], kind="stable")

    def _insert_copies(self, moved: list[Ints]) -> None:
        """Hang each of `moved` from the root, below a copy of the node it hung from."""
        copies = len(moved)
        sizes = np.array([self.count[items].sum() for items in moved], np.int64)
        originals = np.array([self.parent[items[0]] for items in moved], np.int64)
        parent = self.parent + np.where(self.parent > 0, copies, 0)
        for number, items in enumerate(moved):
            parent[items] = number + 1
        # Copies are numbered first: a parent's number stays below its children's.
        self.parent = np.insert(parent, 1, np.zeros(copies, np.int64))
        self.count = np.insert(self.count, 1, sizes)
        self.depth = np.insert(self.depth, 1, self.depth[originals])
        self._prefix_comp = np.insert(self._prefix_comp, 1, self._prefix_comp[originals])
        self.nodes += copies


@njit(cache=True, nogil=True)
def leaf_positions(siblings, parent, count):  # type: ignore[no-untyped-def]
    """Position of every item's first request when parents' children follow one another as in `siblings`.

    `siblings` lists items grouped by ascending parent; parents come before their children in number.
    """
    position = np.zeros(len(parent), np.int64)
    last, used = np.int64(-2), np.int64(0)
    for item in siblings:
        if parent[item] < 0:
            continue
        if parent[item] != last:
            last, used = parent[item], np.int64(0)
        position[item] = position[last] + used
        used += count[item]
    return position


@njit(cache=True, nogil=True)
def _out_of_band(siblings, parent, count, density, nodes):  # type: ignore[no-untyped-def]
    """Requests beyond the geometric mean of an ancestor's density and its neighbouring sibling's."""
    low = np.zeros(len(parent), np.float64)
    high = np.full(len(parent), np.inf)
    last = np.int64(0)
    for item in siblings:  # grouped by ascending parent: a parent's band is complete before its children's
        above = parent[item]
        if above < 0 or count[item] == 0:
            continue
        low[item], high[item] = low[above], high[above]
        if last > 0 and parent[last] == above:
            between = density[last]
            if between < np.inf:
                between = np.sqrt(density[last]) * np.sqrt(density[item])
            between = min(max(between, density[item]), density[last])
            low[last], high[item] = max(low[last], between), min(high[item], between)
        last = item
    return (density[nodes:] < low[nodes:]) | (density[nodes:] > high[nodes:])


@njit(cache=True, nogil=True)
def _outlier_subtrees(parent, count, outlier, nodes):  # type: ignore[no-untyped-def]
    """Largest items whose requests are all outliers, without those that have a child of the root alone."""
    strays = np.zeros(len(parent), np.int64)
    for request in range(len(outlier)):
        strays[nodes + request] = outlier[request]
    for item in range(nodes, len(parent)):
        strays[parent[item]] += strays[item]
    for node in range(nodes - 1, 0, -1):
        strays[parent[node]] += strays[node]
    alone = np.zeros(len(parent), np.bool_)
    items = []
    for item in range(1, len(parent)):
        above = parent[item]
        alone[item] = above == 0 or (alone[above] and count[item] == count[above])
        if above <= 0 or alone[item] or strays[item] < max(count[item], 1):
            continue
        if strays[above] < count[above] or alone[above]:
            items.append(item)
    return np.array(items, dtype=np.int64)


@njit(cache=True, nogil=True)
def _cut(items, starts, ends, ranked, limits, parent, depth, count):  # type: ignore[no-untyped-def]
    """Choose bunches items[starts[b]:ends[b]] to cut off, in ranked order, within the limits.

    They are those of `_Forest.split`.

    The cost of a cut is the path to the deepest ancestor that keeps other requests: those tokens were
    shared with them. Takes the requests out of their ancestors' counts.

    Returns:
        (tokens spent, chosen bunches).
    """
    budget, longest = limits
    spent = np.int64(0)
    chosen = []
    for bunch in ranked:
        size = np.int64(0)
        for i in range(starts[bunch], ends[bunch]):
            size += count[items[i]]
        first = parent[items[starts[bunch]]]
        above = first
        while above > 0 and count[above] == size:
            above = parent[above]
        # A bunch that has a child of the root to itself already hangs where it belongs.
        if above == 0 or depth[above] > longest or spent + depth[above] > budget:
            continue
        spent += depth[above]
        node = first
        while node > 0:
            count[node] -= size
            node = parent[node]
        chosen.append(bunch)
    return spent, np.array(chosen, dtype=np.int64)


@njit(cache=True, nogil=True)
def _walk(order, lcp, request_root):  # type: ignore[no-untyped-def]
    """Tokens that each request of a leaf order shares with the one before it.

    Requests under different children of the root share nothing any more; within one of them the
    shared prefix is the minimum of `lcp` between the two, found through the nearest smaller values.
    """
    n = len(order)
    levels = 1
    while (1 << levels) <= n:
        levels += 1
    table = np.empty((levels, n), np.int64)  # sparse table of range minima
    table[0] = lcp
    for level in range(1, levels):
        half = 1 << (level - 1)
        for i in range(n - (1 << level) + 1):
            table[level, i] = min(table[level - 1, i], table[level - 1, i + half])
    shared = np.zeros(n, np.int64)
    for i in range(1, n):
        a, b = order[i - 1], order[i]
        if request_root[a] != request_root[b]:
            continue
        lo, hi = min(a, b) + 1, max(a, b) + 1
        level = 0
        while (1 << (level + 1)) <= hi - lo:
            level += 1
        shared[i] = min(table[level, lo], table[level, hi - (1 << level)])
    return shared


@njit(cache=True, nogil=True)
def _roots(parent, num_nodes):  # type: ignore[no-untyped-def]
    """The child of the root above each request; items whose parent is the root are their own."""
    root = np.empty(len(parent), np.int64)
    root[0] = 0
    for item in range(1, len(parent)):
        root[item] = item if parent[item] == 0 else root[parent[item]]
    return root[num_nodes:]


@njit(cache=True, nogil=True)
def _group(shared, footprint, limit):  # type: ignore[no-untyped-def]
    """Number requests so that neighbours who share a prefix stay together up to `limit` KV tokens."""
    group = np.zeros(len(shared), np.int64)
    number, held = 0, 0
    for i in range(len(shared)):
        cost = footprint[i] - shared[i]
        if i > 0 and (shared[i] == 0 or held + cost > limit):
            number += 1
            held = 0
            cost = footprint[i]
        held += cost
        group[i] = number
    return group


def _may_lose(tree: ResourceAwarePrefixTree, share: float, before: Sharing) -> int:
    """Tokens of sharing that splits may lose, if all of the pool may lose a share."""
    left = share * (tree.shared_tokens + before.kept + before.lost) - before.lost
    # What earlier plans did not cut is not for the last one, which would leave nothing whole.
    return int(max(min(share * tree.shared_tokens, left), 0.0))


def _dense_from(forest: _Forest, *, stream: bool) -> float:
    """The density from which on items belong at the dense end.

    It is that of all together. What waits of a stream may be dense from end to end, if the others have begun
    as they came: there, what takes more compute than memory is dense in any case.
    """
    every = float(densities(forest.comp[0], forest.mem[0]))
    return min(every, 1.0) if stream else every


def _begun_first(forest: _Forest, begun: NDArray[np.bool_], *, stream: bool) -> Ints:
    """The leaf order with what is begun at the end of the order that it is nearer to, in density."""
    order = forest.leaves
    dense = forest.leaf_density >= _dense_from(forest, stream=stream)
    turn = np.where(begun[order], np.where(dense, 0, 2), 1)
    return np.asarray(order[np.argsort(turn, kind="stable")])


def order_by_density(
    tree: ResourceAwarePrefixTree,
    cost: CostModel,
    *,
    sharing_budget: float = 0.99,
    before: Sharing = NOTHING_BEFORE,
    longest_cut: float = np.inf,
    group_tokens: int = 0,
    split: bool = True,
    begun: NDArray[np.bool_] | None = None,
    stream: bool = False,
) -> DensityOrder:
    """Requests by density: sorted layer by layer, split and merged (paper 5.2, Algorithms 1 and 2).

    Repeats sort -> split -> sort until the leaves are non-increasing in density or every remaining
    split costs more than the budget; each split divides a child of the root, so it ends.

    Args:
        tree: of sorted prompts, with estimated or known output lengths.
        cost: the model that the tree was made with.
        sharing_budget: share of the depth-first sharing that splits must keep, in [0, 1]: of this tree's, and
            of all of it with what was `before`.
        before: what requests that have begun had and lost of it.
        longest_cut: tokens of a prefix that splits may cut; a longer one would have to be held twice.
        group_tokens: KV footprint up to which neighbours that share a prefix form one group; 0 makes
            every request its own group.
        split: False leaves the tree whole (for ablation).
        begun: (n,) requests of the tree that go before the others of their end of the order; none by default.
        stream: whether other requests are to come: then what few read yet waits for more readers, where it is
            too long to be cut.

    Raises:
        ValueError: sharing_budget outside [0, 1].
    """
    if not 0.0 <= sharing_budget <= 1.0:
        raise ValueError(f"sharing budget must be between 0 and 1, got {sharing_budget}")
    forest = _Forest(tree, cost)
    budget, splits = _may_lose(tree, 1.0 - sharing_budget, before), 0
    while split:
        spent, cut = forest.split(budget, longest_cut)
        if cut == 0:
            break
        budget -= spent
        splits += cut
        forest.sort()
    if stream:
        forest.most_read_first(longest_cut)
    order = forest.leaves if begun is None else _begun_first(forest, begun, stream=stream)
    shared = _walk(order, tree.lcp, _roots(forest.parent, forest.nodes))
    comp = forest.comp[forest.nodes + order]
    group = _group(shared, tree.kv_tokens[order], group_tokens)
    return DensityOrder(
        order=order,
        comp=comp,
        density=np.asarray(forest.density[forest.nodes + order]),
        group=group,
        group_density=densities(np.bincount(group, comp), np.bincount(group, tree.mem[order])),
        shared=shared,
        splits=splits,
    )


def in_order(tree: ResourceAwarePrefixTree, order: Ints) -> DensityOrder:
    """Requests in any order, one after the other.

    Args:
        order: (n,) indices of the tree's requests.
    """
    density = densities(tree.comp, tree.mem)[order]
    return DensityOrder(
        order=order,
        comp=tree.comp[order],
        density=density,
        group=np.arange(len(order)),
        group_density=density,
        shared=_walk(order, tree.lcp, np.zeros(len(order), np.int64)),
        splits=0,
    )


def order_of_arrival(tree: ResourceAwarePrefixTree, sequence: Ints) -> DensityOrder:
    """Requests that have next to nothing to share in the order in which they came.

    Args:
        sequence: (n,) numbers of their arrivals.
    """
    return in_order(tree, np.asarray(np.argsort(sequence, kind="stable")))

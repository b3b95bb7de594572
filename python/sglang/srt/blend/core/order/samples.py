"""Requests that run first, so that their answers tell how long those of others will be (paper 5.1)."""

from __future__ import annotations

from collections import deque
from itertools import islice

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sglang.srt.blend.core.pool.output_length import octaves
from sglang.srt.blend.core.pool.prefix_tree import nodes_of
from sglang.srt.blend.core.pool.request_table import RequestTable, State
from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts
from sglang.srt.blend.core.step.leaders import CACHE_SHARE

Ints = NDArray[np.int64]

SHORT_CAP = 16
"""Output tokens. Answers capped at so few need no sample: whatever their length is, it changes little, while
the prefix of a sample may have left the cache when its relatives' turn comes."""

SAME_PROMPT = 4
"""Requests with one prompt of which one is a sample: their answers are of a kind."""

_LEAST_SAMPLES = 4
# Of each class of caps: few long answers may hide among many others.

_OF_A_KIND = 4
# Samples of a large kind of requests: the first one may be an exception.


@njit(cache=True)
def _cover_large_subtrees(lo, hi, unknown, chosen, at_least, draws):  # type: ignore[no-untyped-def]
    """Add one random request of every node with `at_least` (nodes,) unknown requests and no sample.

    Nodes come in preorder, so the last of them are deepest: a sample drawn for a child covers its
    ancestors too.
    """
    n = len(unknown)
    unknown_before = np.zeros(n + 1, np.int64)
    for i in range(n):
        unknown_before[i + 1] = unknown_before[i] + unknown[i]
    candidates = np.flatnonzero(unknown)
    # Fenwick tree over samples: coverage changes as samples are added.
    tree = np.zeros(n + 1, np.int64)
    for i in range(n):
        if chosen[i]:
            j = i + 1
            while j <= n:
                tree[j] += 1
                j += j & -j
    for node in range(len(lo) - 1, -1, -1):
        first, last = unknown_before[lo[node]], unknown_before[hi[node]]
        if last - first < at_least[node]:
            continue
        covered, j = 0, hi[node]
        while j > 0:
            covered += tree[j]
            j -= j & -j
        j = lo[node]
        while j > 0:
            covered -= tree[j]
            j -= j & -j
        if covered > 0:
            continue
        pick = candidates[first + min(int(draws[node] * (last - first)), last - first - 1)]
        chosen[pick] = True
        j = pick + 1
        while j <= n:
            tree[j] += 1
            j += j & -j


def choose_samples(
    *,
    lo: Ints,
    hi: Ints,
    at_least: Ints,
    unknown: NDArray[np.bool_],
    covered: NDArray[np.bool_],
    fraction: float,
    rng: np.random.Generator,
) -> Ints:
    """Samples, requests to run before the others: a random `fraction`, and one of every large subtree.

    Their answers tell how long those of their neighbours will be (paper 5.1). Those that are covered already
    count towards both.

    Args:
        lo, hi: (nodes,) the tree's intervals.
        at_least: (nodes,) requests of unknown length that make a subtree large.
        unknown: (n,) requests that may be sampled.
        covered: (n,) samples under way and requests whose answer is in; none of them `unknown`.
        fraction: share of the requests of unknown length, in [0, 1].
        rng: draws the samples.

    Returns:
        Ascending indices of requests, int64; empty when fraction is 0 or nothing is unknown.

    Raises:
        ValueError: fraction outside [0, 1].
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"sample fraction must be between 0 and 1, got {fraction}")
    candidates = np.flatnonzero(unknown)
    if fraction == 0.0 or len(candidates) == 0:
        return np.empty(0, np.int64)
    present = int(covered.sum())
    total = len(candidates) + present
    missing = max(int(np.ceil(fraction * total)), min(_LEAST_SAMPLES, total)) - present
    chosen = covered.copy()
    if missing > 0:
        chosen[rng.choice(candidates, size=missing, replace=False)] = True
    _cover_large_subtrees(lo, hi, unknown, chosen, at_least, rng.random(len(lo)))
    return np.flatnonzero(chosen & ~covered)


def cover_kinds(
    *,
    kind: Ints,
    unknown: NDArray[np.bool_],
    covered: NDArray[np.bool_],
    fraction: float,
    rng: np.random.Generator,
) -> Ints:
    """Further samples of kinds with too few: one for each quarter of 1 / fraction requests, at most four.

    So of 1,000 requests 25 of a kind have one sample, and 100 have four:

    >>> rng = np.random.default_rng(0)
    >>> kind, nothing = np.repeat([7, 8, 9], [875, 25, 100]), np.zeros(1000, bool)
    >>> more = cover_kinds(kind=kind, unknown=~nothing, covered=nothing, fraction=0.01, rng=rng)
    >>> np.unique(kind[more], return_counts=True)[1].tolist()
    [4, 1, 4]

    Args:
        kind: (n,) what is expected to have answers of its own, numbered.
        unknown: (n,) requests that may be sampled.
        covered: (n,) samples, and requests whose answer is in or under way.
        fraction: share of the requests of unknown length that is sampled anyway, in [0, 1].
        rng: draws the samples.

    Returns:
        Ascending indices of requests, int64.
    """
    _, kind, number = np.unique(kind, return_inverse=True, return_counts=True)
    wanted = np.minimum((_OF_A_KIND * fraction * number).astype(np.int64), _OF_A_KIND)
    missing = wanted - np.bincount(kind[covered], minlength=len(number))
    drawn = rng.permutation(np.flatnonzero(unknown & ~covered & (missing[kind] > 0)))
    drawn = drawn[np.argsort(kind[drawn], kind="stable")]
    begins = np.searchsorted(kind[drawn], kind[drawn])
    return np.sort(drawn[np.arange(len(drawn)) - begins < missing[kind[drawn]]])


def _kinds(prompts: SortedPrompts, lengths: Ints) -> Ints:
    """What `LengthEstimator` tells apart at most, (n,): prompts of alike length that hang from one node."""
    kind, first = np.empty(len(lengths), np.int64), 0
    sizes = octaves(lengths)
    for number in np.unique(sizes).tolist():
        alike = sizes == number
        nodes = nodes_of(prompts.subset(alike).common)
        kind[alike] = first + nodes.request_parent
        first += len(nodes.lo)
    return kind


class Samples:
    """The samples of a pool, in the order in which they were chosen.

    Attributes:
        answered: whether the last open sample has left since this was set to False.
        open: samples that have not left.
    """

    def __init__(self, table: RequestTable, rng: np.random.Generator) -> None:
        self.answered = False
        self._table, self._rng = table, rng
        self._slots: deque[int] = deque()
        self.open = 0

    def choose(
        self, prompts: SortedPrompts, planned: NDArray[np.bool_], fraction: float, kv_capacity: int
    ) -> None:
        """Sample more requests where nothing, no hint either, tells about them; those of large caps first.

        Each class of caps is sampled for itself. A subtree is large if it has 1 / fraction requests, so that
        random ones alone would be expected to hit it. Kinds that the estimator may tell apart have some of
        their own, so more than the fraction may be sampled.

        Args:
            prompts: (n,) requests of unknown length.
            planned: (n,) whether each may run.
            fraction: of the requests of unknown length, to be sampled at least.
            kv_capacity: tokens.
        """
        if not fraction:
            return
        table, slots = self._table, prompts.slots
        cap = table.max_new[slots]
        covered = table.sampled[slots] | (table.observed[slots] >= 0) | (table.state[slots] == State.RUNNING)
        unknown = planned & ~covered & (table.hint[slots] == 0) & (cap > SHORT_CAP)
        picks = []
        classes = octaves(cap)
        for number in np.unique(classes[unknown])[::-1].tolist():
            of_class = classes == number
            members = prompts.subset(of_class)
            nodes = nodes_of(members.common)
            shared = nodes.depth[nodes.request_parent]
            whole = table.store.length[members.slots] == shared
            same = np.bincount(nodes.request_parent[whole], minlength=len(nodes.lo))
            may = unknown[of_class] & (shared * CACHE_SHARE <= kv_capacity)
            has_one = covered[of_class]
            chosen = choose_samples(
                lo=nodes.lo,
                hi=nodes.hi,
                at_least=np.where(same >= SAME_PROMPT, SAME_PROMPT, int(np.ceil(1.0 / fraction))),
                unknown=may,
                covered=has_one,
                fraction=fraction,
                rng=self._rng,
            )
            has_one[chosen] = True
            more = cover_kinds(
                kind=_kinds(members, table.store.length[members.slots]),
                unknown=may,
                covered=has_one,
                fraction=fraction,
                rng=self._rng,
            )
            picks.extend(members.slots[np.concatenate([chosen, more])].tolist())
        table.sampled[picks] = True
        self.open += len(picks)
        self._slots.extend(picks)

    def waiting(self, limit: int | None = None) -> list[int]:
        """The first samples that wait, `limit` at most."""
        state = self._table.state
        while self._slots and state[self._slots[0]] != State.WAITING:
            self._slots.popleft()
        return list(islice((s for s in self._slots if state[s] == State.WAITING), limit))

    def left(self) -> None:
        """A sample has left the pool, answered or not."""
        self.open -= 1
        self.answered |= self.open == 0

    def drop_absent(self) -> None:
        """Forget those that have left: their slots may belong to others from now on."""
        self._slots = deque(s for s in self._slots if self._table.state[s] != State.ABSENT)

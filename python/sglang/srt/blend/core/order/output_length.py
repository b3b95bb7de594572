"""Output lengths nobody knows yet: which requests to sample, and what their answers say (paper 5.1)."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sglang.srt.blend.core.pool.request_table import PRIOR_OUTPUT_TOKENS

Ints = NDArray[np.int64]


@njit(cache=True)
def _subtree_means(lo, hi, parent, observed_sums, observed_counts, prior):  # type: ignore[no-untyped-def]
    """Mean observed output below each node; a node without samples takes its nearest ancestor's.

    The ancestor's mean is that of the node's siblings, which are all the samples it has.
    """
    means = np.empty(len(lo), np.float64)
    for node in range(len(lo)):
        count = observed_counts[hi[node]] - observed_counts[lo[node]]
        if count > 0:
            means[node] = (observed_sums[hi[node]] - observed_sums[lo[node]]) / count
        elif node == 0:
            means[node] = prior
        else:
            means[node] = means[parent[node]]
    return means


def estimate_outputs(
    *,
    lo: Ints,
    hi: Ints,
    parent: Ints,
    request_parent: Ints,
    observed: Ints,
    known: Ints,
    max_new_tokens: Ints,
    hint: Ints | None = None,
) -> Ints:
    """Estimated output tokens of each request of a tree, int64 (n,), at least 1 (paper 5.1).

    A request is expected to answer like the finished ones below its node; where none has finished there,
    below the nearest ancestor that has some, and where nobody has finished, as `PRIOR_OUTPUT_TOKENS` says.

    Two nodes of two requests below the root; an answer of 30 tokens is in from the first:

    >>> estimate_outputs(
    ...     lo=np.array([0, 0, 2]), hi=np.array([4, 2, 4]), parent=np.array([-1, 0, 0]),
    ...     request_parent=np.array([1, 1, 2, 2]),
    ...     observed=np.array([30, -1, -1, -1]),
    ...     known=np.array([0, 0, 0, 7]),
    ...     max_new_tokens=np.array([100, 100, 20, 100]),
    ... ).tolist()
    [30, 30, 20, 7]

    Args:
        lo, hi, parent: (nodes,) the tree's structure, see `ResourceAwarePrefixTree`.
        request_parent: (n,) node from which each request hangs.
        observed: (n,) output tokens of finished requests, -1 elsewhere.
        known: (n,) output tokens fixed by the request itself (ignore_eos, min = max), 0 elsewhere.
        max_new_tokens: (n,) caps every estimate, tokens.
        hint: (n,) output tokens expected while nobody has finished below the request's node, 0 for none.

    Three prompts below one node; the first has answered with 30 tokens, the last may have 20:

    >>> one, two = np.array([0]), np.array([3])
    >>> estimate_outputs(
    ...     lo=one, hi=two, parent=np.array([-1]), request_parent=np.zeros(3, np.int64),
    ...     observed=np.array([30, -1, -1]), known=np.zeros(3, np.int64),
    ...     max_new_tokens=np.array([100, 100, 20]),
    ... ).tolist()
    [30, 30, 20]
    """
    finished = observed >= 0
    sums = np.concatenate([[0], np.cumsum(np.where(finished, observed, 0))]).astype(np.float64)
    counts = np.concatenate([[0], np.cumsum(finished)])
    means = _subtree_means(lo, hi, parent, sums, counts, float(PRIOR_OUTPUT_TOKENS))
    estimate = np.rint(means[request_parent]).astype(np.int64)
    if hint is not None:
        unanswered = counts[hi[request_parent]] == counts[lo[request_parent]]
        estimate = np.where(unanswered & (hint > 0), hint, estimate)
    estimate = np.minimum(np.where(known > 0, known, estimate), max_new_tokens)
    estimate = np.where(finished, observed, estimate)
    return np.asarray(np.maximum(estimate, 1), np.int64)


@njit(cache=True)
def _cover_large_subtrees(lo, hi, unknown, chosen, at_least, draws):  # type: ignore[no-untyped-def]
    """Add one random request of every subtree with `at_least` unknown requests and no sample.

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
        if last - first < at_least:
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
    unknown: NDArray[np.bool_],
    covered: NDArray[np.bool_],
    fraction: float,
    rng: np.random.Generator,
) -> Ints:
    """Samples, requests to run before the others: a random `fraction`, and one of every large subtree.

    Their answers tell how long those of their neighbours will be (paper 5.1).
    A subtree is large when it holds 1 / fraction requests of unknown length, so that the random part
    alone would be expected to hit it. Those that are covered already count towards both.

    Args:
        lo, hi: (nodes,) the tree's intervals.
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
    missing = int(np.ceil(fraction * (len(candidates) + present))) - present
    chosen = covered.copy()
    if missing > 0:
        chosen[rng.choice(candidates, size=missing, replace=False)] = True
    _cover_large_subtrees(lo, hi, unknown, chosen, int(np.ceil(1.0 / fraction)), rng.random(len(lo)))
    return np.flatnonzero(chosen & ~covered)

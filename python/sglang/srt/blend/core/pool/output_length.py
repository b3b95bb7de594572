"""Output lengths that nobody knows, from answers that have ended and those that still run (paper 5.1, 5.4).

An answer that has 500 tokens so far says that such answers are at least that long: it is a censored
observation, and it counts as soon as it is made. So each group of requests has a life table, the share of
answers that end in each bin of lengths among those that got there, instead of a mean of the ended ones.
"""

from __future__ import annotations

from math import erfc

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blend.core.pool.life_table import EDGES, LifeTables
from sglang.srt.blend.core.pool.prefix_tree import nodes_of
from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CAP_CLASSES = 64
"""Caps of equally many bits are one class: whoever sets caps tells what kind of answer they expect."""

OPEN_TOKENS = 512
"""Output tokens assumed of an answer of which nothing is known, not even a cap."""

SHRINKAGE = 2.0
"""Answers that what is known of a group's parent counts for in each bin."""

PRIOR_WEIGHT = 0.25
"""The same of what is assumed where no answer tells."""

_PRIOR_TOKENS = 128.0
# Before anything is known a mean is the geometric one of this many tokens and of the cap.

_SPREAD = 0.9
# Standard deviation of the logarithm of lengths, where no answer tells.

_WITNESSES = 4.0
# Answers that the place of a curve is fitted to at most: those of a kind tell the same.


def _curves() -> tuple[Floats, Floats]:
    """Logarithms of medians, and shares of log-normal lengths above each edge, (curves, edges)."""
    centres = np.arange(0.0, np.log(EDGES[-1]), 0.1)
    distance = (np.log(EDGES[1:]) - centres[:, None]) / (_SPREAD * np.sqrt(2.0))
    above = 0.5 * np.array([[erfc(x) for x in row] for row in distance.tolist()])
    return centres, np.concatenate([np.ones((len(centres), 1)), above], axis=1)


_CENTRES, _CURVES = _curves()
HINTED = CAP_CLASSES, CAP_CLASSES + len(_CURVES)
"""First group, and the one behind the last, of requests of which no answer tells more than their hints do."""
_HAZARDS = 1.0 - _CURVES[:, 1:] / _CURVES[:, :-1]


def prior_tokens(cap: ArrayLike) -> Ints:
    """Mean output tokens, (n,), assumed where only the cap is known, (n,).

    >>> prior_tokens([1, 512, 2048]).tolist()
    [1, 256, 512]
    """
    cap = np.maximum(np.asarray(cap, np.int64), 1)
    return np.asarray(np.minimum(np.rint(np.sqrt(_PRIOR_TOKENS * cap)).astype(np.int64), cap))


def _curve_of(mean: ArrayLike) -> Ints:
    """Number of the curve whose lengths have such a mean, (n,)."""
    curve = np.searchsorted(_CENTRES, np.log(np.maximum(mean, 1.0)) - _SPREAD**2 / 2.0)
    return np.asarray(np.minimum(curve, len(_CENTRES) - 1), np.int64)


@njit(cache=True)
def _fitted(before, ended, exposed, curves, hazards):  # type: ignore[no-untyped-def]
    """Number of the curve under which as many of those exposed would have ended as have.

    One more answer that follows the curve `before` takes part.
    """
    weight = min(1.0, _WITNESSES / max(exposed[0], 1e-9))
    low, high = 0, len(curves) - 1
    while low < high:
        middle = (low + high) // 2
        expected, wanted = 0.0, 1.0
        for b in range(len(exposed)):
            expected += (weight * exposed[b] + curves[before, b]) * hazards[middle, b]
            wanted += weight * ended[b]
        if expected > wanted:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def _expose(ended, exposed, bins, tokens, ends):  # type: ignore[no-untyped-def]
    """Count an answer of so many tokens in a life table."""
    for b in range(len(bins) - 1):
        if bins[b + 1] <= tokens and not (ends and bins[b + 1] == tokens):
            exposed[b] += 1.0
        else:
            if ends:
                exposed[b] += 1.0
                ended[b] += 1.0
            else:
                exposed[b] += (tokens - bins[b]) / (bins[b + 1] - bins[b])
            return


@njit(cache=True)
def _rows_of(parent, request_parent, size, informs):  # type: ignore[no-untyped-def]
    """Which life table each request has, and which one each table is shrunk towards.

    A node has its own if it knows something that its parent does not, and so do the requests that hang from
    it directly beside other nodes.

    Returns:
        (n,) row of each request, (rows,) parent row, -1 for the root's, row 0.
    """
    nodes = len(parent)
    direct, hanging = np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    for i in range(len(request_parent)):
        hanging[request_parent[i]] += 1
        direct[request_parent[i]] += informs[i]
    below = direct.copy()
    for node in range(nodes - 1, 0, -1):
        below[parent[node]] += below[node]
    row, own = np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    above = [-1]
    for node in range(nodes):
        if node > 0:
            row[node] = row[parent[node]]
            if 0 < below[node] < below[parent[node]]:
                above.append(row[parent[node]])
                row[node] = len(above) - 1
        own[node] = row[node]
        if 0 < direct[node] < below[node] and hanging[node] < size[node]:
            above.append(row[node])
            own[node] = len(above) - 1
    return own[request_parent], np.array(above)


@njit(cache=True)
def _life_tables(rows, above, tokens, over, below_cap, curve, bins, curves, hazards):  # type: ignore[no-untyped-def]
    """Share of answers that outlive each edge, (rows, edges), and how many are over, (rows,)."""
    last = len(bins) - 1
    ended, exposed = np.zeros((len(above), last)), np.zeros((len(above), last))
    answers = np.zeros(len(above), np.int64)
    for i in range(len(rows)):
        answers[rows[i]] += over[i]
        if tokens[i] > 0 or over[i]:  # one that was cut at its cap would have gone on
            _expose(ended[rows[i]], exposed[rows[i]], bins, tokens[i], over[i] and below_cap[i])
    for row in range(len(above) - 1, 0, -1):  # children come after their parents
        answers[above[row]] += answers[row]
        ended[above[row]] += ended[row]
        exposed[above[row]] += exposed[row]
    survival = np.ones((len(above), last + 1))
    hazard = np.empty((len(above), last))
    fitted = np.empty(len(above), np.int64)
    for row in range(len(above)):
        parent = above[row]
        mean, happened = 1.0, 1.0  # ends that the parent lets expect, and those there were; one more of each
        if row > 0:
            for b in range(last):
                mean += exposed[row, b] * hazard[parent, b]
                happened += ended[row, b]
        before = curve if row == 0 else fitted[parent]
        if mean >= 2.0 and happened == 1.0:  # one should have ended: the parent's ends are those of others
            before = max(before, curve)
        fitted[row] = _fitted(before, ended[row], exposed[row], curves, hazards)
        for b in range(last):
            towards, worth = hazards[fitted[row], b], PRIOR_WEIGHT
            if row > 0:  # what the parent knows counts as far as it knows it, and was right about this group
                known, like = exposed[parent, b], min(hazard[parent, b] * happened / mean, 1.0)
                towards = (known * like + PRIOR_WEIGHT * towards) / (known + PRIOR_WEIGHT)
                worth = SHRINKAGE
            hazard[row, b] = (ended[row, b] + worth * towards) / (exposed[row, b] + worth)
            survival[row, b + 1] = survival[row, b] * (1.0 - hazard[row, b])
    return survival, answers


class LengthEstimator(LifeTables):
    """Life tables of groups of requests: how long answers are that nobody knows the length of.

    Requests of one class of caps are a tree of groups: classes of prompt lengths, for long texts have long
    translations, and in each of these the nodes of the prefix tree below which something is known. A
    group's table counts the answers below it, those that ended and those that are so long already; an
    answer cut at its cap is one that would have gone on. In each bin a table is shrunk towards its parent's,
    as far as that knows more, and beyond the longest answer so far it follows a log-normal curve that is
    fitted to it. So a group of long answers is known to be long as soon as its first answers are longer
    than others'.

    Two prompts begin with 1 and two with 2. One of the first has ended with 30 tokens, and one of the others
    has 500 so far; the last two have not begun:

    >>> prompts = SortedPrompts.of([1, 1, 1, 2, 2, 1, 2, 2], [0, 2, 4, 6, 8])
    >>> estimator = LengthEstimator()
    >>> groups = estimator.learn(
    ...     prompts, lengths=[2] * 4, tokens=[30, 0, 500, 0], ended=[1, 0, 0, 0], cap=[4096] * 4, hint=[0] * 4
    ... )
    >>> estimator.expected(groups[[1, 3]], generated=[0, 0], cap=[4096, 4096]).round().tolist()
    [208.0, 1103.0]
    >>> nothing = LengthEstimator()
    >>> nothing.expected(nothing.newcomers([4096], hint=[0]), generated=[0], cap=[4096]).round().tolist()
    [876.0]
    """

    def __init__(self) -> None:
        caps = 0.75 * 2.0 ** np.minimum(np.arange(CAP_CLASSES), 40)
        self._curve = _curve_of(np.sqrt(_PRIOR_TOKENS * caps))
        self._prior = _CURVES[self._curve]
        super().__init__(np.concatenate([self._prior, _CURVES]))

    def newcomers(self, cap: ArrayLike, hint: ArrayLike) -> Ints:
        """Groups, (n,), of requests that came after `learn`: as hints say, or all with such caps."""
        cap, hint = (np.asarray(values, np.int64) for values in (cap, hint))
        return np.where(hint > 0, CAP_CLASSES + _curve_of(hint), octaves(cap))

    def learn(
        self,
        prompts: SortedPrompts,
        *,
        lengths: ArrayLike,
        tokens: ArrayLike,
        ended: ArrayLike,
        cap: ArrayLike,
        hint: ArrayLike,
    ) -> Ints:
        """Make new tables of all that is known.

        Args:
            prompts: (n,) requests of unknown length, waiting, running and remembered ones.
            lengths: (n,) prompt tokens; arrays are in the order of `prompts`.
            tokens: (n,) output tokens so far.
            ended: (n,) whether each answer has ended with that.
            cap: (n,) output tokens after which each is cut.
            hint: (n,) output tokens that earlier runs let expect while no answer of the group has ended, 0
                where there was none.

        Returns:
            Groups, int64 (n,), valid until the next call.
        """
        tokens, cap, hint, lengths = (np.asarray(v, np.int64) for v in (tokens, cap, hint, lengths))
        ended = np.asarray(ended, np.bool_)
        groups, classes, survival = self.newcomers(cap, hint), octaves(cap), self._prior.copy()
        tables, rows = [survival, _CURVES], CAP_CLASSES + len(_CURVES)
        for number in np.unique(classes).tolist():
            of_class = classes == number
            informs = (tokens[of_class] > 0) | ended[of_class] | (hint[of_class] > 0)
            own, above = _groups(prompts.subset(of_class), octaves(lengths[of_class]), informs)
            table, answers = _life_tables(
                own,
                above,
                tokens[of_class],
                ended[of_class],
                tokens[of_class] < cap[of_class],
                self._curve.item(number),
                EDGES,
                _CURVES,
                _HAZARDS,
            )
            survival[number] = table[0]
            told = (hint[of_class] == 0) | (answers[own] > 0)
            groups[of_class] = np.where(told, np.where(own > 0, rows + own - 1, number), groups[of_class])
            tables.append(table[1:])
            rows += len(table) - 1
        super().__init__(np.concatenate(tables))
        return groups


def octaves(values: Ints) -> Ints:
    """Number of each value's class, (n,), its bits: caps or prompts of alike length are of a kind.

    >>> octaves(np.array([1, 1000, 1024])).tolist()
    [1, 10, 11]
    """
    return np.asarray(np.frexp(np.maximum(values, 1).astype(np.float64))[1], np.int64)


def _groups(prompts: SortedPrompts, sizes: Ints, informs: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Rows of requests, (n,), and each row's parent, (rows,): row 0 has all, then a tree for each size."""
    own, above = np.zeros(len(sizes), np.int64), [np.array([-1])]
    for number in np.unique(sizes).tolist():
        alike = sizes == number
        nodes, rows = nodes_of(prompts.subset(alike).common), sum(map(len, above))
        of_nodes, parents = _rows_of(nodes.parent, nodes.request_parent, nodes.hi - nodes.lo, informs[alike])
        own[alike] = rows + of_nodes
        above.append(np.append(0, rows + parents[1:]))
    return own, np.concatenate(above)

"""Life tables: the share of answers that outlive each length, and what that lets expect of one that runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

EDGES: Ints = np.append(0, np.unique(np.rint(2.0 ** np.arange(0.0, 20.01, 0.25)).astype(np.int64)))
"""Output tokens at which bins of lengths begin: bin b holds lengths above EDGES[b], up to EDGES[b + 1]."""


@njit(cache=True)
def _sums(survival, bins):  # type: ignore[no-untyped-def]
    """Sum of the survival of every token from each edge on, (rows, edges)."""
    sums = np.zeros_like(survival)
    for row in range(len(survival)):
        for b in range(len(bins) - 2, -1, -1):
            width = bins[b + 1] - bins[b]
            drop = survival[row, b] - survival[row, b + 1]
            sums[row, b] = sums[row, b + 1] + width * survival[row, b] - drop * (width - 1) / 2.0
    return sums


@njit(cache=True)
def _at(survival, sums, bins, tokens):  # type: ignore[no-untyped-def]
    """Survival of `tokens` in one life table, and the sum from there on."""
    b = np.searchsorted(bins, tokens, side="right") - 1
    if b >= len(bins) - 1:
        return survival[-1], 0.0
    inside, width = tokens - bins[b], bins[b + 1] - bins[b]
    slope = (survival[b] - survival[b + 1]) / width
    now = survival[b] - slope * inside
    return now, sums[b] - inside * survival[b] + slope * inside * (inside - 1) / 2.0


@njit(cache=True)
def mean_length(survival, sums, bins, generated, cap):  # type: ignore[no-untyped-def]
    """Mean length of answers that go on after `generated` tokens, by one life table, cut at `cap`."""
    if generated >= cap:
        return float(cap)
    now, rest = _at(survival, sums, bins, generated)
    _, cut = _at(survival, sums, bins, cap)
    return min(max(generated + (rest - cut) / now, generated + 1.0), float(cap))


@njit(cache=True)
def fill_quantiles(tokens, survival, sums, bins, generated, cap):  # type: ignore[no-untyped-def]
    """Tokens, (parts,), of answers that go on, at the middles of equal shares of them, by one life table."""
    now, _ = _at(survival, sums, bins, generated)
    b = np.searchsorted(bins, generated, side="right") - 1
    for part in range(len(tokens)):
        level = now * (1.0 - (part + 0.5) / len(tokens))
        while b < len(bins) - 1 and survival[b + 1] > level:
            b += 1
        if b >= len(bins) - 1:
            tokens[part] = cap
            continue
        inside = (survival[b] - level) / max(survival[b] - survival[b + 1], 1e-300)
        until = bins[b] + np.int64(np.ceil(inside * (bins[b + 1] - bins[b])))
        tokens[part] = min(max(until, generated + 1), cap)


@njit(cache=True)
def _expected(row, generated, cap, survival, sums, bins):  # type: ignore[no-untyped-def]
    mean = np.empty(len(row))
    for i in range(len(row)):
        mean[i] = mean_length(survival[row[i]], sums[row[i]], bins, generated[i], cap[i])
    return mean


@njit(cache=True)
def _quantiles(row, generated, cap, parts, survival, sums, bins):  # type: ignore[no-untyped-def]
    tokens = np.empty((len(row), parts), np.int64)
    for i in range(len(row)):
        fill_quantiles(tokens[i], survival[row[i]], sums[row[i]], bins, generated[i], cap[i])
    return tokens


@njit(cache=True)
def _tail(row, generated, cap, number, at_most, survival, sums, bins):  # type: ignore[no-untyped-def]
    """Steps after which `at_most` requests are expected to go on, if `number` of each go on now."""
    low, high = 0, 0
    for i in range(len(row)):
        high = max(high, cap[i] - generated[i])
    while low < high:
        steps = (low + high) // 2
        going = 0.0
        for i in range(len(row)):
            if generated[i] + steps < cap[i]:
                table, total = survival[row[i]], sums[row[i]]
                now, _ = _at(table, total, bins, generated[i])
                then, _ = _at(table, total, bins, generated[i] + steps)
                going += number[i] * min(then / now, 1.0)
        if going > at_most:
            low = steps + 1
        else:
            high = steps
    return low


class LifeTables:
    """Shares of answers that outlive each edge of the bins, a table in each row; lengths lie even in a bin.

    Half of these answers have 4 tokens, the others 55 to 64:

    >>> tables = LifeTables(np.where(EDGES < 4, 1.0, np.where(EDGES < 64, 0.5, 0.0))[None])
    >>> tables.quantiles([0], generated=[8], cap=[100], parts=2).tolist()
    [[57, 62]]

    Args:
        survival: (tables, edges), 1.0 first and never increasing.

    Attributes:
        columns: survival, its sums from each edge on, and the edges, for kernels that look up many.
    """

    def __init__(self, survival: Floats) -> None:
        self.columns = survival, _sums(survival, EDGES), EDGES

    def expected(self, group: ArrayLike, generated: ArrayLike, cap: ArrayLike) -> Floats:
        """Mean output tokens of answers that go on after those generated, more than those, at most the cap.

        Args:
            group: (n,) number of the table.
            generated, cap: (n,).
        """
        return np.asarray(_expected(*_ints(group, generated, cap), *self.columns))

    def quantiles(self, group: ArrayLike, generated: ArrayLike, cap: ArrayLike, parts: int) -> Ints:
        """Tokens of answers that go on, each at the middles of `parts` equal shares; int64 (n, parts)."""
        columns = _ints(group, generated, cap)
        return np.asarray(_quantiles(*columns, parts, *self.columns))

    def tail(self, group: ArrayLike, generated: ArrayLike, cap: ArrayLike, *, going: float = 0.5) -> int:
        """Steps until the last of these answers, (n,), ends if none waits; 0 without any.

        Args:
            going: answers that are expected to go on then, below 1: a half most likely, less to be sure.
        """
        alike, number = np.unique(np.stack(_ints(group, generated, cap)), axis=1, return_counts=True)
        if not alike.size:
            return 0
        return int(_tail(*alike, number, going, *self.columns))


def _ints(*values: Any) -> list[Ints]:
    return [np.asarray(value, np.int64) for value in values]

"""Lexicographic order and longest common prefixes of prompts: the skeleton of the prefix tree.

Everything here works on a TokenStore's arrays: `data` int32 (tokens,), `start` and `length` int64
(slots,), and `space` int32 (slots,), a namespace that is compared before any token (prompts of
different namespaces share nothing). Ties are broken by slot, so the order is deterministic.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_INSERTION_LIMIT = 12
_WHOLE = np.int64(1) << 62  # longer than any prompt


@njit(cache=True)
def common_prefix(data, start, length, a, b, depth):  # type: ignore[no-untyped-def]
    """Tokens that the prompts of slots a and b share, given that they share the first `depth`."""
    limit = min(length[a], length[b])
    i, x, y = depth, start[a], start[b]
    while i < limit and data[x + i] == data[y + i]:
        i += 1
    return i


@njit(cache=True)
def _precedes(data, start, length, a, b, depth):  # type: ignore[no-untyped-def]
    """Whether prompt a sorts before b, given that they share the first `depth` tokens."""
    shared = common_prefix(data, start, length, a, b, depth)
    if shared == length[a] or shared == length[b]:
        return length[a] < length[b] if length[a] != length[b] else a < b
    return data[start[a] + shared] < data[start[b] + shared]


@njit(cache=True)
def _key(data, start, length, slot, depth):  # type: ignore[no-untyped-def]
    """The next two tokens as one sortable number; an ended prompt sorts first."""
    key = np.int64(0)
    if depth < length[slot]:
        # 33 bits of token and sentinel, and the upper 30 of the next token's 32: 63 bits in all.
        key = (np.int64(data[start[slot] + depth]) + (np.int64(1) << 31) + 1) << np.int64(30)
        if depth + 1 < length[slot]:
            key |= (np.int64(data[start[slot] + depth + 1]) + (np.int64(1) << 31)) >> np.int64(2)
    return key


@njit(cache=True)
def _sort_tokens(data, start, length, order, lo, hi):  # type: ignore[no-untyped-def]
    """Sort order[lo:hi] by tokens: group by the next token, skipping what a whole group shares."""
    stack = [(lo, hi, np.int64(0))]
    while len(stack) > 0:
        lo, hi, depth = stack.pop()
        if hi - lo <= _INSERTION_LIMIT:
            for i in range(lo + 1, hi):
                slot, j = order[i], i
                while j > lo and _precedes(data, start, length, slot, order[j - 1], depth):
                    order[j] = order[j - 1]
                    j -= 1
                order[j] = slot
            continue
        first = order[lo]
        shared = length[first]
        for i in range(lo + 1, hi):
            if shared == depth:
                break
            other = order[i]
            limit = min(shared, length[other])
            k, x, y = depth, start[first], start[other]
            while k < limit and data[x + k] == data[y + k]:
                k += 1
            shared = k
        depth = shared
        keys = np.empty(hi - lo, np.int64)
        for i in range(lo, hi):
            keys[i - lo] = _key(data, start, length, order[i], depth)
        rank = np.argsort(keys, kind="mergesort")
        group = order[lo:hi].copy()
        for i in range(hi - lo):
            order[lo + i] = group[rank[i]]
        # The key holds one whole token and most of the second: equal keys agree on one token for sure.
        begin = 0
        for i in range(1, hi - lo + 1):
            if i == hi - lo or keys[rank[i]] != keys[rank[begin]]:
                if i - begin > 1:
                    if keys[rank[begin]] == 0:
                        order[lo + begin : lo + i].sort()
                    else:
                        stack.append((lo + begin, lo + i, depth + 1))
                begin = i


@njit(cache=True)
def sort_prompts(data, start, length, space, slots):  # type: ignore[no-untyped-def]
    """The slots in lexicographic order of (namespace, tokens, slot); int64 (n,).

    Groups of prompts are sorted by their next two tokens at a time, after what a whole group shares.
    """
    order = np.sort(slots)
    spaces = np.empty(len(order), np.int64)
    for i in range(len(order)):
        spaces[i] = space[order[i]]
    order = order[np.argsort(spaces, kind="mergesort")]
    begin = 0
    for i in range(1, len(order) + 1):
        if i == len(order) or space[order[i]] != space[order[begin]]:
            _sort_tokens(data, start, length, order, begin, i)
            begin = i
    return order


@njit(cache=True)
def neighbour_prefixes(data, start, length, space, order):  # type: ignore[no-untyped-def]
    """lcp[i]: tokens that order[i] shares with order[i - 1]; 0 at i = 0 and across namespaces."""
    lcp = np.zeros(len(order), np.int64)
    for i in range(1, len(order)):
        if space[order[i]] == space[order[i - 1]]:
            lcp[i] = common_prefix(data, start, length, order[i - 1], order[i], 0)
    return lcp


@njit(cache=True)
def _slot_precedes(data, start, length, space, a, b):  # type: ignore[no-untyped-def]
    if space[a] != space[b]:
        return space[a] < space[b]
    return _precedes(data, start, length, a, b, 0)


@njit(cache=True)
def merge_sorted(data, start, length, space, order, lcp, arrivals):  # type: ignore[no-untyped-def]
    """`order` and `lcp` with `arrivals`, sorted slots that are not in `order`, inserted.

    Each arrival finds its place by binary search, so a few arrivals cost little beyond copying the arrays.
    """
    total = len(order) + len(arrivals)
    merged = np.empty(total, np.int64)
    prefixes = np.zeros(total, np.int64)
    done = 0  # of order
    for k in range(len(arrivals) + 1):
        end = len(order)  # of those that go before the arrival
        if k < len(arrivals):
            lo, hi = done, len(order)
            while lo < hi:
                middle = (lo + hi) // 2
                if _slot_precedes(data, start, length, space, order[middle], arrivals[k]):
                    lo = middle + 1
                else:
                    hi = middle
            end = lo
        at = done + k
        for i in range(done, end):
            merged[at] = order[i]
            if i == done:  # behind an arrival, or the first of all
                if at > 0 and space[merged[at - 1]] == space[order[i]]:
                    prefixes[at] = common_prefix(data, start, length, merged[at - 1], order[i], 0)
            else:
                prefixes[at] = lcp[i]
            at += 1
        done = end
        if k < len(arrivals):
            merged[at] = arrivals[k]
            if at > 0 and space[merged[at - 1]] == space[arrivals[k]]:
                prefixes[at] = common_prefix(data, start, length, merged[at - 1], arrivals[k], 0)
    return merged, prefixes


@njit(cache=True)
def remove_sorted(order, lcp, keep):  # type: ignore[no-untyped-def]
    """`order` and `lcp` of the entries whose `keep`, (n,), is true.

    Across a gap the shared prefix is the least of those in between.
    """
    count = 0
    for i in range(len(order)):
        count += keep[i]
    kept = np.empty(count, np.int64)
    prefixes = np.zeros(count, np.int64)
    at, shared = 0, _WHOLE
    for i in range(len(order)):
        shared = min(shared, lcp[i])
        if keep[i]:
            kept[at] = order[i]
            prefixes[at] = shared if at > 0 else 0
            at += 1
            shared = _WHOLE
    return kept, prefixes


@njit(cache=True)
def narrow(data, start, length, order, lo, hi, depth, tokens):  # type: ignore[no-untyped-def]
    """Bounds (lo, hi) of the part of order[lo:hi] whose prompts go on with `tokens`; (lo, lo) if it is empty.

    The prompts of order[lo:hi] agree on `depth` tokens. Those that end inside `tokens` are not in the part.
    """
    size = len(tokens)
    if size == 0 or lo >= hi:
        return lo, hi
    bounds = np.empty(2, np.int64)
    for which in range(2):  # first not before `tokens`, then first past every extension of `tokens`
        a, b = lo, hi
        while a < b:
            middle = (a + b) // 2
            slot = order[middle]
            limit = min(size, length[slot] - depth)
            base, i = start[slot] + depth, 0
            while i < limit and data[base + i] == tokens[i]:
                i += 1
            if i == size:
                before = which == 1
            elif i == limit:
                before = True
            else:
                before = data[base + i] < tokens[i]
            if before:
                a = middle + 1
            else:
                b = middle
        bounds[which] = a
    return bounds[0], max(bounds[0], bounds[1])

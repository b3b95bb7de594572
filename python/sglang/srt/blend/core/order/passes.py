"""A pool's passes in arrays, some at a time: what they hold, decode and prefill in one order or another.

Who begins when follows the same rules as in steps (`step/`): sides and their shares, the pace of prefill, and
whether one fits until it ends. Left out are preemptible requests, retractions, and that prefixes may leave
the cache before the last of their requests has ended, or stay in it after that.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sglang.srt.blend.core.step.dual_scan import advance
from sglang.srt.blend.core.step.fill import BUSY, FILL_STEPS
from sglang.srt.blend.core.step.pacing import LATE
from sglang.srt.blend.core.step.partition import DENSEST, compute_share

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_TRIES = 8
# Requests of which one may begin in place of one that does not fit.

HELD, MEMORY, ROWS, READS, OWN = range(5)
"""Columns of a stride: KV tokens held, those of the memory side, rows and KV reads of each of its passes, and
the KV tokens that requests hold beside what others had computed for them."""

TOKENS, PAIRS, PROMPTS, WANTED = range(4)
"""Columns of what a stride prefills: tokens, query-key pairs, prompts; rows that a pass which prefills should
have on average, infinite where nothing is paced."""

# What is left of a pool: comp and mem of those that wait, in seconds, their prompt tokens if nobody loses a
# prefix, and the KV tokens that those of the compute side among them count for;
_COMP, _MEM, _PROMPT_TOKENS, _COMPUTE_SHARE = range(4)
# rows to compute, infinite where nothing is paced; KV tokens to read and to hold, summed over passes;
# the share of the capacity that is held, see `Fill`; and the pass before which the last who has begun ends.
_ROWS_LEFT, _READS_LEFT, _HELD_LEFT, _FILL, _ENDED = range(4, 9)


class Queue(NamedTuple):
    """Requests as a scanner walks them: from the left and, unless they are one line, from the right; (n,).

    Prompts hang from nodes of the prefix tree: `node` is the deepest above each request, and `suffix` what is
    its own; `new` is what of a prompt is computed if nobody loses a prefix. Nodes have a `parent`, -1 for the
    root, and a `depth` in tokens. The rest is as in `ScanOrder`.
    """

    node: Ints
    suffix: Ints
    new: Ints
    output: Ints
    density: Floats
    share: Floats
    comp: Floats
    mem: Floats
    one_line: bool
    parent: Ints
    depth: Ints


class Bounds(NamedTuple):
    """What holds requests back.

    Attributes:
        capacity: KV tokens; reserve: those of them kept for the compute side.
        rows: rows left, infinite where nothing is paced.
        reads, held: KV tokens left to read and to hold, summed over passes.
        fill: share of the capacity that is held at first.
        last: passes at the end that prefill leaves to decoding.
        dense: density from which on a request is compute side at first, where it is paced.
        tile: rows that cost as much as any part of them; chunk: prompt tokens that a pass may prefill.
        stride: passes.
        free: rows that a pass computes while it reads the weights, and `per_token` more for each KV token
            that it reads; `mean` is what a pass has on average; all 0 where nothing hides.
    """

    capacity: float
    reserve: float
    rows: float
    reads: float
    held: float
    fill: float
    last: float
    dense: float
    tile: float
    chunk: float
    stride: int
    free: float
    per_token: float
    mean: float


@njit(cache=True, nogil=True)
def _longer(array, size):  # type: ignore[no-untyped-def]
    longer = np.zeros((size, array.shape[1]))
    longer[: len(array)] = array
    return longer


@njit(cache=True, nogil=True)
def nodes_held(parent, request_parent, depth, held):  # type: ignore[no-untyped-def]
    """Which nodes somebody holds, (nodes,); `held` are tokens of each request's prompt that somebody does."""
    most = np.zeros(len(parent), np.int64)
    for i in range(len(held)):
        most[request_parent[i]] = max(most[request_parent[i]], held[i])
    for node in range(len(parent) - 1, 0, -1):
        most[parent[node]] = max(most[parent[node]], most[node])
    return most >= depth


@njit(cache=True, nogil=True)
def _run_on(running, use, given_back, used, stride):  # type: ignore[no-untyped-def]
    """Requests that run already hold KV and decode to their ends."""
    for i in range(len(running.left)):
        own, output, side = running.own[i], running.left[i], int(running.memory_side[i])
        for t in range(-(-output // stride)):
            grown = stride * (t + 1)
            use[t, HELD] += own + grown
            use[t, OWN] += own + grown
            use[t, MEMORY] += side * (own + grown)
            part = min(output - stride * t, stride) / stride
            _decode(use, t, part, running.context[i] + grown - stride / 2)
        used[side] += own + output / 2
        given_back[-(-output // stride), side] += own + output / 2


@njit(cache=True, nogil=True)
def _decode(use, t, part, context):  # type: ignore[no-untyped-def]
    use[t, ROWS] += part
    use[t, READS] += part * context


@njit(cache=True, nogil=True)
def _fits(use, at, queue, i, ends, stride, capacity, memory_capacity):  # type: ignore[no-untyped-def]
    """Whether a request that begins in a stride stays within bounds to its end, with the prefix it needs.

    A node is held until the last of its requests ends: `ends` says the stride from which on it is not. Those
    above it are held as long at least.
    """
    node, tokens = queue.node[i], queue.suffix[i]
    for t in range(at, at + -(-queue.output[i] // stride)):
        while node > 0 and ends[node] <= t:
            tokens += queue.depth[node] - queue.depth[queue.parent[node]]
            node = queue.parent[node]
        needs = tokens + stride * (t - at + 1)
        if use[t, HELD] + needs > capacity or use[t, MEMORY] + needs > memory_capacity:
            return False
    return True


@njit(cache=True, nogil=True)
def _longest_fit(use, at, tokens, stride, capacity, memory_capacity):  # type: ignore[no-untyped-def]
    """Output tokens with which a request of so many prompt tokens stays within bounds from a stride on."""
    t = at
    while t < len(use):
        needs = tokens + stride * (t - at + 1)
        if use[t, HELD] + needs > capacity or use[t, MEMORY] + needs > memory_capacity:
            break
        t += 1
    return stride * (t - at)


@njit(cache=True, nogil=True)
def _behind(queue, waits, left, right, longest, root):  # type: ignore[no-untyped-def]
    """The next request behind the memory side's first one that is short enough to fit; -1 if none is."""
    for i in range(right - 1, left - 1, -1):
        if queue.density[i] >= root:
            break
        if waits[i] and queue.output[i] <= longest:
            return i
    return -1


@njit(cache=True, nogil=True)
def _one_that_fits(use, at, queue, waits, left, i, ends, bounds, free, root, side):  # type: ignore[no-untyped-def]
    """This request, or if it does not fit one that may pass it and does: at the memory side; else -1."""
    for _ in range(_TRIES):
        if _fits(use, at, queue, i, ends, bounds.stride, bounds.capacity, free):
            return i
        most = _longest_fit(use, at, queue.suffix[i], bounds.stride, bounds.capacity, free)
        i = _behind(queue, waits, left, i, min(most, queue.output[i] - 1), root) if side else -1
        if i < 0:
            break
    return -1


@njit(cache=True, nogil=True)
def _computed(at, queue, i, ends):  # type: ignore[no-untyped-def]
    """Prompt tokens that are computed for a request that begins in a stride."""
    node, computed = queue.node[i], queue.suffix[i]
    while node > 0 and ends[node] <= at:
        computed += queue.depth[node] - queue.depth[queue.parent[node]]
        node = queue.parent[node]
    return computed


@njit(cache=True, nogil=True)
def _begin(use, work, at, wait, queue, i, ends, computed, stride, side):  # type: ignore[no-untyped-def]
    """A request begins, and decodes once its prompt is computed, strides later; returns where it ends."""
    node, tokens = queue.node[i], queue.suffix[i]
    context = tokens + queue.depth[node]
    end = at + wait + -(-queue.output[i] // stride)
    for t in range(at, end):
        while node > 0 and ends[node] <= t:
            tokens += queue.depth[node] - queue.depth[queue.parent[node]]
            node = queue.parent[node]
        before = stride * (t - at - wait)
        grown = max(before + stride, 0)
        use[t, HELD] += tokens + grown
        use[t, OWN] += computed + grown
        use[t, MEMORY] += side * (tokens + grown)
        if before >= 0:
            first = int(before == 0)  # prefill yields the first token
            part = (min(queue.output[i] - before, stride) - first) / stride
            _decode(use, t, part, context + grown - stride / 2)
    node = queue.node[i]
    while node > 0 and ends[node] < end:
        ends[node] = end
        node = queue.parent[node]
    work[at, PAIRS] += computed * (context - computed) + computed * (computed + 1) / 2
    work[at, PROMPTS] += 1
    return end


@njit(cache=True, nogil=True)
def _turn(queue, bounds, steps, dense, side, left, right, root, used):  # type: ignore[no-untyped-def]
    """Whether the next request of an end may begin if it fits, quota aside; as `DualScanner` proposes.

    Args:
        steps: passes left; dense: density of the work left.
        side: 1 is the memory side, at the right.
        used: KV tokens that requests of each side count for.
    """
    paced, memory = bounds.rows < np.inf, side == 1
    if queue.one_line or (paced and not memory):
        return not memory
    if paced:
        if queue.output[right] >= LATE * steps:
            return True
        if queue.density[right] >= dense:
            return False
    share = compute_share(root, queue.density[left], queue.density[right])
    return used[side] < bounds.capacity * (1.0 - share if memory else share)


@njit(cache=True, nogil=True)
def _steps(left, longest, at, bounds):  # type: ignore[no-untyped-def]
    """Passes left, as `WorkLeft` has them; the longest answer of those who wait takes so many."""
    full = left[_HELD_LEFT] / max(left[_FILL] * bounds.capacity, 1.0)
    return max(full, left[_ENDED] - at * bounds.stride, float(longest), 1.0)


@njit(cache=True, nogil=True)
def _dense(left, owed, bounds):  # type: ignore[no-untyped-def]
    """Density of the work left, from which on a request is compute side where that is paced."""
    if left[_ROWS_LEFT] == np.inf:
        return bounds.dense
    rows, reads = (left[_ROWS_LEFT] + owed) / bounds.rows, max(left[_READS_LEFT], 1.0) / bounds.reads
    return bounds.dense * rows / reads


@njit(cache=True, nogil=True)
def _rows(rows_left, decoding, reads, steps, bounds):  # type: ignore[no-untyped-def]
    """Rows that a pass of a stride should have on average where prefill is paced; see `Pacer`.

    The rows left are divided by the passes left, or each pass takes as many times its free rows. A tile that
    decoding begins is filled.
    """
    rows = rows_left / max(steps - bounds.last, 1.0)
    if bounds.free > 0.0:
        rows = max(rows / max(bounds.mean, 1.0), 1.0) * (bounds.free + bounds.per_token * reads)
    return max(rows, np.ceil(decoding / bounds.tile) * bounds.tile)


@njit(cache=True, nogil=True)
def _quota(wanted, decoding, bounds):  # type: ignore[no-untyped-def]
    """Prompt tokens that the passes of a stride prefill, of so many rows each, besides those that decode."""
    return min(max(wanted - decoding, 0.0), bounds.chunk) * bounds.stride


@njit(cache=True, nogil=True)
def _begun(left, queue, i, bounds):  # type: ignore[no-untyped-def]
    """One who waited is no longer left."""
    left[_COMP] -= queue.comp[i]
    left[_MEM] = max(left[_MEM] - queue.mem[i], 0.0)
    left[_COMPUTE_SHARE] -= queue.share[i] * (queue.density[i] >= bounds.dense)
    left[_PROMPT_TOKENS] -= queue.new[i]
    left[_ROWS_LEFT] -= queue.new[i]


@njit(cache=True, nogil=True)
def _passed(left, use, bounds):  # type: ignore[no-untyped-def]
    """A stride of which this is the row is no longer left."""
    left[_ROWS_LEFT] = max(left[_ROWS_LEFT] - use[ROWS] * bounds.stride, left[_PROMPT_TOKENS])
    left[_READS_LEFT] -= use[READS] * bounds.stride
    left[_HELD_LEFT] = max(left[_HELD_LEFT] - use[OWN] * bounds.stride, 0.0)
    if use[HELD] >= BUSY * bounds.capacity:
        own, forgets = min(use[OWN] / bounds.capacity, 1.0), (1.0 - 1.0 / FILL_STEPS) ** bounds.stride
        left[_FILL] = own + (left[_FILL] - own) * forgets  # as `Fill` has it


@njit(cache=True, nogil=True)
def _at_first(left, queue, running, bounds):  # type: ignore[no-untyped-def]
    left[_COMP], left[_MEM], left[_PROMPT_TOKENS] = queue.comp.sum(), queue.mem.sum(), queue.new.sum()
    left[_ROWS_LEFT], left[_READS_LEFT] = bounds.rows, bounds.reads
    left[_HELD_LEFT], left[_FILL] = bounds.held, bounds.fill
    for i in range(len(queue.output)):
        left[_COMPUTE_SHARE] += queue.share[i] * (queue.density[i] >= bounds.dense)
    left[_ENDED] = _longest(running.left)


@njit(cache=True, nogil=True)
def _longest(output):  # type: ignore[no-untyped-def]
    longest = 1
    for tokens in output:
        longest = max(longest, tokens)
    return longest


@njit(cache=True, nogil=True)
def foresee_passes(queue, ends, running, bounds):  # type: ignore[no-untyped-def]
    """What each stride holds and decodes, (strides, 5), and what it prefills, (strides, 4).

    From the left nobody passes who does not fit, from the right only shorter answers do. A prompt that is too
    long for the quota goes on in the next stride.

    Args:
        ends: (nodes,) stride from which on nobody who runs holds a node; changed.
    """
    n, stride, left = len(queue.output), bounds.stride, np.zeros(9)
    span = max(_longest(queue.output), _longest(running.left)) // stride + 2
    size = 4 * span + 64
    use, work, given_back, used = np.zeros((size, 5)), np.zeros((size, 4)), np.zeros((size, 2)), np.zeros(2)
    _run_on(running, use, given_back, used, stride)
    _at_first(left, queue, running, bounds)
    waits, longest, next_longest = np.ones(n, np.bool_), np.argsort(-queue.output), 0
    first, last, owed, t = 0, n - 1, 0.0, 0
    while first <= last or owed > 0.0:
        if t + 2 * span + 2 > len(use):
            size = 2 * len(use)
            use, work, given_back = _longer(use, size), _longer(work, size), _longer(given_back, size)
        used -= given_back[t]
        idle, taken, ahead = use[t, HELD] == 0.0, owed, 0.0
        while next_longest < n and not waits[longest[next_longest]]:
            next_longest += 1
        steps = _steps(left, queue.output[longest[next_longest]] if next_longest < n else 0, t, bounds)
        work[t, WANTED] = np.inf  # where nothing runs there is nothing to pace
        if not idle and left[_ROWS_LEFT] < np.inf:
            work[t, WANTED] = _rows(left[_ROWS_LEFT] + owed, use[t, ROWS], use[t, READS], steps, bounds)
        dense, quota = _dense(left, owed, bounds), _quota(work[t, WANTED], use[t, ROWS], bounds)
        for side in (1, 0):
            limit = bounds.chunk * stride if side else quota
            while first <= last and (taken < limit or (idle and taken == 0.0)):
                root = left[_COMP] / left[_MEM] if left[_MEM] > 0.0 else DENSEST
                i, someone = last if side else first, idle and not side and taken == 0.0
                if not (someone or _turn(queue, bounds, steps, dense, side, first, last, root, used)):
                    break
                reserve = min(bounds.reserve, left[_COMPUTE_SHARE] + used[0])
                free = bounds.capacity - reserve if side else np.inf
                if not idle:
                    i = _one_that_fits(use, t, queue, waits, first, i, ends, bounds, free, root, side)
                if i < 0:
                    break
                tokens = _computed(t, queue, i, ends)
                wait = min(int((taken + tokens) / max(limit, stride)), span)
                end = _begin(use, work, t, wait, queue, i, ends, tokens, stride, side)
                used[side] += queue.share[i]
                given_back[end, side] += queue.share[i]
                _begun(left, queue, i, bounds)
                left[_ENDED] = max(left[_ENDED], (t + wait) * stride + queue.output[i])
                taken, ahead, idle, waits[i] = taken + tokens, ahead + side * tokens, False, False
                first, last = advance(waits, first, last)
        quota = _quota(work[t, WANTED], use[t, ROWS], bounds)  # who has begun decodes, too
        work[t, TOKENS] = min(taken, max(quota, ahead, stride), bounds.chunk * stride)
        owed = taken - work[t, TOKENS]
        _passed(left, use[t], bounds)
        t += 1
    while t < len(use) and use[t, HELD] > 0.0:
        t += 1
    return use[:t], work[:t]

"""How long a pool takes in one order or another: its passes in arrays, some at a time.

No scheduler runs, and estimates are taken for what will be: a judge compares orders under one forecast, it
does not promise how long one takes. Left out are preemptible requests, retractions, prefixes that leave the
cache, encoders, and drafts, which shorten every order alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.engines import load_engine
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork
from sglang.srt.blend.core.order.snapshot import Runners, Snapshot
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree
from sglang.srt.blend.core.step.dual_scan import ScanOrder, advance
from sglang.srt.blend.core.step.pacing import LATE, Demand, Pacer, WorkLeft
from sglang.srt.blend.core.step.partition import DENSEST, IDLE_STEPS, compute_share

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

STRIDES = 256
"""Parts of about as many passes into which a pool is divided."""

_TRIES = 8
# Requests of which one may begin in place of one that does not fit.

# Columns of a stride: KV tokens held, those of the memory side, rows and KV reads of each of its passes.
_HELD, _MEMORY, _ROWS, _READS = range(4)
# And of what it prefills: tokens, query-key pairs, prompts.
_TOKENS, _PAIRS, _PROMPTS = range(3)


class _Queue(NamedTuple):
    """Requests as a scanner walks them: from the left and, unless they are one line, from the right; (n,).

    Prompts hang from nodes of the prefix tree: `node` is the deepest above each request, and `suffix` what is
    its own. Nodes have a `parent`, -1 for the root, and a `depth` in tokens. The rest is as in `ScanOrder`.
    """

    node: Ints
    suffix: Ints
    output: Ints
    density: Floats
    share: Floats
    comp: Floats
    mem: Floats
    one_line: bool
    parent: Ints
    depth: Ints


class _Bounds(NamedTuple):
    """What holds requests back.

    Attributes:
        capacity: KV tokens; reserve: those of them kept for the compute side.
        rows: rows left, infinite where nothing is paced; passes: over which to spread them.
        steps: passes until the end, if the cache were full.
        dense: density from which on a request is compute side, where it is paced.
        tile: rows that cost as much as any part of them; chunk: prompt tokens that a pass may prefill.
        stride: passes.
        free: rows that a pass computes while it reads the weights, and `per_token` more for each KV token
            that it reads; all 0 where nothing hides. fair: how many times as many each pass takes.
    """

    capacity: float
    reserve: float
    rows: float
    passes: float
    steps: float
    dense: float
    tile: float
    chunk: float
    stride: int
    free: float
    per_token: float
    fair: float


@njit(cache=True, nogil=True)
def _longer(array, size):  # type: ignore[no-untyped-def]
    longer = np.zeros((size, array.shape[1]))
    longer[: len(array)] = array
    return longer


@njit(cache=True, nogil=True)
def _nodes_held(parent, request_parent, depth, held):  # type: ignore[no-untyped-def]
    """Which nodes somebody holds, (nodes,); `held` are tokens of each request's prompt that somebody does."""
    most = np.zeros(len(parent), np.int64)
    for i in range(len(held)):
        most[request_parent[i]] = max(most[request_parent[i]], held[i])
    for node in range(len(parent) - 1, 0, -1):
        most[parent[node]] = max(most[parent[node]], most[node])
    return most >= depth


@njit(cache=True, nogil=True)
def _run_on(use, output, own, context, stride, memory):  # type: ignore[no-untyped-def]
    """A request that runs already holds KV and decodes to its end."""
    for i in range(-(-output // stride)):
        grown = stride * (i + 1)
        use[i, _HELD] += own + grown
        if memory:
            use[i, _MEMORY] += own + grown
        _decode(use, i, min(output - stride * i, stride) / stride, context + grown - stride / 2)


@njit(cache=True, nogil=True)
def _decode(use, t, part, context):  # type: ignore[no-untyped-def]
    use[t, _ROWS] += part
    use[t, _READS] += part * context


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
        if use[t, _HELD] + needs > capacity or use[t, _MEMORY] + needs > memory_capacity:
            return False
    return True


@njit(cache=True, nogil=True)
def _longest_fit(use, at, tokens, stride, capacity, memory_capacity):  # type: ignore[no-untyped-def]
    """Output tokens with which a request of so many prompt tokens stays within bounds from a stride on."""
    t = at
    while t < len(use):
        needs = tokens + stride * (t - at + 1)
        if use[t, _HELD] + needs > capacity or use[t, _MEMORY] + needs > memory_capacity:
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
def _begin(use, at, queue, i, ends, stride, memory):  # type: ignore[no-untyped-def]
    """A request begins; returns the prompt tokens that are computed for it."""
    node, tokens = queue.node[i], queue.suffix[i]
    context = tokens + queue.depth[node]
    end = at + -(-queue.output[i] // stride)
    computed = tokens
    for t in range(at, end):
        while node > 0 and ends[node] <= t:
            part = queue.depth[node] - queue.depth[queue.parent[node]]
            tokens += part
            computed += part * (t == at)
            node = queue.parent[node]
        grown = stride * (t - at + 1)
        use[t, _HELD] += tokens + grown
        if memory:
            use[t, _MEMORY] += tokens + grown
        first = int(t == at)  # prefill yields the first token
        decodes = min(queue.output[i] - stride * (t - at), stride) - first
        _decode(use, t, decodes / stride, context + grown - stride / 2)
    node = queue.node[i]
    while node > 0 and ends[node] < end:
        ends[node] = end
        node = queue.parent[node]
    return computed, context


@njit(cache=True, nogil=True)
def _turn(queue, bounds, at, side, left, right, root, used):  # type: ignore[no-untyped-def]
    """Whether the next request of an end may begin if it fits, quota aside; as `DualScanner` proposes.

    Args:
        side: 1 is the memory side, at the right.
        used: KV tokens that requests of each side count for.
    """
    paced, memory = bounds.rows < np.inf, side == 1
    if queue.one_line or (paced and not memory):
        return not memory
    if paced:
        late = LATE * max(bounds.steps - at * bounds.stride, 1.0)
        if queue.output[right] >= late:
            return True
        if queue.density[right] >= bounds.dense:
            return False
    share = compute_share(root, queue.density[left], queue.density[right])
    return used[side] < bounds.capacity * (1.0 - share if memory else share)


@njit(cache=True, nogil=True)
def _quota(left, decoding, reads, short, at, bounds):  # type: ignore[no-untyped-def]
    """Prompt tokens that the passes of a stride should prefill, and the rows that each falls short.

    The rows left are divided by the passes left, or each pass takes as many times its free rows; in whole
    tiles.
    """
    most = bounds.chunk * bounds.stride
    if left == np.inf:
        return most, 0.0
    rows = left / max(bounds.passes - at * bounds.stride, bounds.passes / 16, 1.0) + short
    if bounds.free > 0.0:
        rows = max(bounds.fair, 1.0) * (bounds.free + bounds.per_token * reads) + short * (bounds.fair > 1.0)
    whole = max(rows // bounds.tile, np.ceil(decoding / bounds.tile)) * bounds.tile
    return min(max(whole - decoding, 0.0) * bounds.stride, most), max(rows - max(whole, decoding), 0.0)


@njit(cache=True, nogil=True)
def _longest(output):  # type: ignore[no-untyped-def]
    longest = 1
    for tokens in output:
        longest = max(longest, tokens)
    return longest


@njit(cache=True, nogil=True)
def _passes(queue, ends, running, bounds):  # type: ignore[no-untyped-def]
    """What each stride holds and decodes, (strides, 4), and what it prefills, (strides, 3).

    From the left nobody passes who does not fit, from the right only shorter answers do. A prompt that is too
    long for the quota goes on in the next stride.
    """
    n, stride = len(queue.output), bounds.stride
    span = max(_longest(queue.output), _longest(running.left)) // stride + 2
    use, work = np.zeros((4 * span + 64, 4)), np.zeros((4 * span + 64, 3))
    given_back, used = np.zeros((4 * span + 64, 2)), np.zeros(2)
    for i in range(len(running.left)):
        side, share = int(running.memory_side[i]), running.own[i] + running.left[i] / 2
        _run_on(use, running.left[i], running.own[i], running.context[i], stride, side == 1)
        used[side] += share
        given_back[-(-running.left[i] // stride), side] += share
    comp, mem, dense_share = queue.comp.sum(), queue.mem.sum(), 0.0
    for i in range(n):
        dense_share += queue.share[i] * (queue.density[i] >= bounds.dense)
    left, right, rows, owed, short, t = 0, n - 1, bounds.rows, 0.0, 0.0, 0
    waits = np.ones(n, np.bool_)
    while left <= right or owed > 0.0:
        if t + span + 2 > len(use):
            use, work = _longer(use, 2 * len(use)), _longer(work, 2 * len(work))
            given_back = _longer(given_back, 2 * len(given_back))
        used -= given_back[t]
        idle, taken, ahead = use[t, _HELD] == 0.0, owed, 0.0
        quota = bounds.chunk * stride  # where nothing runs there is nothing to pace
        if not idle:
            quota, short = _quota(rows, use[t, _ROWS], use[t, _READS], short, t, bounds)
        for side in (1, 0):
            limit = bounds.chunk * stride if side else quota
            while left <= right and (taken < limit or (idle and taken == 0.0)):
                root = comp / mem if mem > 0.0 else DENSEST
                i, someone = right if side else left, idle and not side and taken == 0.0
                if not (someone or _turn(queue, bounds, t, side, left, right, root, used)):
                    break
                reserve = min(bounds.reserve, dense_share + used[0])
                free = bounds.capacity - reserve if side else np.inf
                if not idle:
                    i = _one_that_fits(use, t, queue, waits, left, i, ends, bounds, free, root, side)
                if i < 0:
                    break
                tokens, context = _begin(use, t, queue, i, ends, stride, side == 1)
                work[t, _PAIRS] += tokens * (context - tokens) + tokens * (tokens + 1) / 2
                work[t, _PROMPTS] += 1
                used[side] += queue.share[i]
                given_back[t + -(-queue.output[i] // stride), side] += queue.share[i]
                comp, mem = comp - queue.comp[i], max(mem - queue.mem[i], 0.0)
                dense_share -= queue.share[i] * (queue.density[i] >= bounds.dense)
                taken, ahead, idle = taken + tokens, ahead + side * tokens, False
                waits[i] = False
                left, right = advance(waits, left, right)
        work[t, _TOKENS] = min(taken, max(quota, ahead, stride), bounds.chunk * stride)
        owed = taken - work[t, _TOKENS]
        rows = max(rows - work[t, _TOKENS] - use[t, _ROWS] * stride, 0.0)
        t += 1
    while t < len(use) and use[t, _HELD] > 0.0:
        t += 1
    return use[:t], work[:t]


@dataclass(frozen=True, slots=True)
class Judge:
    """Foresees the modelled seconds of orders.

    Args:
        times: step times of the model on its hardware.
        engine: how it combines the parts of a pass; see `engines`.
        chunk: prompt tokens that a pass may prefill.
    """

    times: StepTimeModel
    engine: str
    chunk: int

    @property
    def paced(self) -> bool:
        """Whether the engine's passes hold prefill and decode together, so that prefill can be spread."""
        return self.engine != "alternating"

    def seconds(
        self,
        scan: ScanOrder,
        order: Ints,
        tree: ResourceAwarePrefixTree,
        requests: Snapshot,
        kv_capacity: int,
        output: Ints | None = None,
    ) -> float:
        """Until all that runs and waits has ended, if estimates hold.

        Args:
            scan: those that wait, as a scanner would walk them.
            order: (n,) indices of the same requests in the tree.
            requests: that the tree was made of, and those that run.
            kv_capacity: tokens.
            output: (n,) tokens that those who wait turn out to answer, in the scan's order, though they are
                paced by what the scan expects; that by default.
        """
        running, node = requests.running, tree.request_parent[order]
        left = _work_left(scan, requests.prompt[order], running)
        passes = left.steps(kv_capacity)
        bounds = _Bounds(
            capacity=float(kv_capacity),
            reserve=self._reserve(scan, left, running, kv_capacity),
            rows=left.rows if self.paced and scan.paced else np.inf,
            passes=left.prefill_steps(kv_capacity),
            steps=passes,
            dense=left.density,
            tile=float(self.times.tile),
            chunk=float(self.chunk),
            stride=max(int(passes / STRIDES), 1),
            **self._free_rows(left, passes, kv_capacity),
        )
        queue = _Queue(
            node=node,
            suffix=np.maximum(requests.prompt[order] - tree.depth[node], 0),
            output=scan.output if output is None else output,
            density=scan.density,
            share=scan.share,
            comp=scan.comp,
            mem=scan.mem,
            one_line=scan.one_line,
            parent=tree.parent,
            depth=tree.depth,
        )
        # A prefix that some hold who run is held until one of them ends, on average.
        soon = int(running.left.mean() / bounds.stride) + 1 if len(running.left) else 0
        held = _nodes_held(tree.parent, tree.request_parent, tree.depth, requests.held)
        use, work = _passes(queue, np.where(held, soon, 0), running, bounds)
        return self._seconds(use, work, bounds)

    def _free_rows(self, left: WorkLeft, passes: float, kv_capacity: int) -> dict[str, float]:
        """The `_Bounds` of an engine that hides prefill behind reads; see `Pacer`."""
        if self.engine != "overlapped":
            return {"free": 0.0, "per_token": 0.0, "fair": 0.0}
        pacer, reads = Pacer(self.times, self.engine, kv_capacity=kv_capacity), left.kv_reads / passes
        free, mean = pacer.free_rows(0.0), pacer.free_rows(reads)
        return {
            "free": free,
            "per_token": (mean - free) / max(reads, 1.0),
            "fair": left.rows / (left.prefill_steps(kv_capacity) * max(mean, 1.0)),
        }

    def _reserve(self, scan: ScanOrder, left: WorkLeft, running: Runners, kv_capacity: int) -> float:
        """KV tokens that those ahead leave to the others."""
        if scan.one_line or not len(scan.slots):
            return 0.0
        if self.paced and scan.paced:
            used = float(running.own[~running.memory_side].sum())
            return left.compute_reserve(kv_capacity, used)
        return kv_capacity * float(compute_share(left.density, scan.density[0], scan.density[-1]))

    def _seconds(self, use: Floats, work: Floats, bounds: _Bounds) -> float:
        """Of all strides: as many passes prefill as have prompts or chunks, and the others only decode."""
        stride, run = bounds.stride, load_engine(self.engine)
        passes = np.clip(np.maximum(work[:, _PROMPTS], np.ceil(work[:, _TOKENS] / bounds.chunk)), 0, stride)
        each = np.maximum(passes, 1.0)
        decode = StepWork(decode_rows=use[:, _ROWS], kv_tokens=use[:, _READS])
        both = StepWork(
            prefill_tokens=work[:, _TOKENS] / each,
            decode_rows=decode.decode_rows,
            kv_tokens=decode.kv_tokens,
            prefill_pairs=work[:, _PAIRS] / each,
            finished_prefills=work[:, _PROMPTS] / each,
        )
        alone = stride - passes
        return float((passes * run(self.times, both) + alone * run(self.times, decode)).sum())


def _work_left(scan: ScanOrder, prompt: Ints, running: Runners) -> WorkLeft:
    """What running and waiting requests will still do in this order, as the pacer sees it."""
    output, left = scan.output, running.left
    held = float((output * (scan.new_tokens + (output + 1) / 2)).sum())
    held += float((left * (running.own + (left + 1) / 2)).sum())
    shared = (output * (prompt - scan.new_tokens)).sum() + (left * (running.context - running.own)).sum()
    root = float(scan.comp.sum() / max(scan.mem.sum(), 1e-300))
    share = np.where(scan.density >= root, scan.share, 0.0)
    return WorkLeft(
        rows=float(scan.new_tokens.sum() + output.sum() + left.sum()),
        kv_reads=held + float(shared),
        kv_held=held,
        longest=float(output.max(initial=0)),
        density=root,
        compute=Demand(float(share.sum()), float((share * (output + IDLE_STEPS)).sum())),
    )

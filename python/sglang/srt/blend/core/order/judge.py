"""How long a pool takes in one order or another: the passes that are foreseen and what each of them takes.

No scheduler runs, and estimates are taken for what will be: a judge compares orders under one forecast, it
does not promise how long one takes. Left out are encoders, drafts, which shorten every order alike, and what
`passes` leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.engines import load_engine
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork
from sglang.srt.blend.core.order.passes import (
    PAIRS,
    PROMPTS,
    READS,
    ROWS,
    TOKENS,
    WANTED,
    Bounds,
    Queue,
    foresee_passes,
    nodes_held,
)
from sglang.srt.blend.core.order.snapshot import Runners, Snapshot
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree
from sglang.srt.blend.core.step.dual_scan import ScanOrder
from sglang.srt.blend.core.step.pacing import Demand, Pacer, WorkLeft
from sglang.srt.blend.core.step.partition import IDLE_STEPS, compute_share

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

STRIDES = 256
"""Parts of about as many passes into which a pool is divided."""


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
        steps = left.steps(kv_capacity)
        bounds = Bounds(
            capacity=float(kv_capacity),
            reserve=self._reserve(scan, left, running, kv_capacity),
            rows=left.rows if self.paced and scan.paced else np.inf,
            reads=max(left.kv_reads, 1.0),
            held=float(left.kv_reads if left.kv_held is None else left.kv_held),
            fill=left.fill,
            last=left.compute.steps,
            dense=left.density,
            tile=float(self.times.tile),
            chunk=float(self.chunk),
            stride=max(int(steps / STRIDES), 1),
            **self._free_rows(left.kv_reads / steps, kv_capacity),
        )
        queue = Queue(
            node=node,
            suffix=np.maximum(requests.prompt[order] - tree.depth[node], 0),
            new=scan.new_tokens,
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
        held = nodes_held(tree.parent, tree.request_parent, tree.depth, requests.held)
        use, work = foresee_passes(queue, np.where(held, soon, 0), running, bounds)
        tokens = work[:, TOKENS]
        if bounds.rows == np.inf:  # as many passes prefill as have prompts or chunks
            passes = np.maximum(work[:, PROMPTS], np.ceil(tokens / bounds.chunk)).clip(0.0, bounds.stride)
            some = self._passes(use, work, passes, tokens / np.maximum(passes, 1.0))
            return some + self._passes(use, work, bounds.stride - passes, 0.0)
        pacer = Pacer(self.times, self.engine, kv_capacity=kv_capacity)
        return self._paced_seconds(use, work, bounds, pacer.sizes(left.kv_reads / steps))

    def _free_rows(self, reads: float, kv_capacity: int) -> dict[str, float]:
        """The `Bounds` of an engine that hides prefill behind so many KV reads of each pass; see `Pacer`."""
        if self.engine != "overlapped":
            return {"free": 0.0, "per_token": 0.0, "mean": 0.0}
        pacer = Pacer(self.times, self.engine, kv_capacity=kv_capacity)
        free, mean = pacer.free_rows(0.0), pacer.free_rows(reads)
        return {"free": free, "per_token": (mean - free) / max(reads, 1.0), "mean": mean}

    def _reserve(self, scan: ScanOrder, left: WorkLeft, running: Runners, kv_capacity: int) -> float:
        """KV tokens that those ahead leave to the others."""
        if scan.one_line or not len(scan.slots):
            return 0.0
        if self.paced and scan.paced:
            used = float(running.own[~running.memory_side].sum())
            return left.compute_reserve(kv_capacity, used)
        return kv_capacity * float(compute_share(left.density, scan.density[0], scan.density[-1]))

    def _paced_seconds(self, use: Floats, work: Floats, bounds: Bounds, sizes: Floats) -> float:
        """Of all strides: passes that prefill have the rows that they should have, on average.

        Some of them have the size below that and some the size above; the others only decode.

        Args:
            sizes: rows of which a pass should have one number, increasing from 0.
        """
        tokens, rows = work[:, TOKENS], use[:, ROWS]
        passes = tokens / np.clip(work[:, WANTED] - rows, 1.0, bounds.chunk)
        passes = np.minimum(passes, bounds.stride)
        mean = rows + tokens / np.maximum(passes, 1e-9)
        above = np.searchsorted(sizes, mean).clip(1, len(sizes) - 1)
        begun = np.ceil(rows / bounds.tile) * bounds.tile  # what is left of a tile costs nothing
        low, high = np.maximum(sizes[above - 1], np.minimum(begun, mean)), np.maximum(sizes[above], mean)
        large = passes * (mean - low) / np.maximum(high - low, 1.0)
        return (
            self._passes(use, work, large, high - rows)
            + self._passes(use, work, passes - large, np.maximum(low - rows, 0.0))
            + self._passes(use, work, bounds.stride - passes, 0.0)
        )

    def _passes(self, use: Floats, work: Floats, passes: Floats, tokens: Floats | float) -> float:
        """Seconds of so many passes of each stride, (strides,), that prefill so many tokens each."""
        part = tokens / np.maximum(work[:, TOKENS], 1.0)
        each = StepWork(
            prefill_tokens=np.broadcast_to(tokens, passes.shape),
            decode_rows=use[:, ROWS],
            kv_tokens=use[:, READS],
            prefill_pairs=work[:, PAIRS] * part,
            finished_prefills=work[:, PROMPTS] * part,
        )
        return float((passes * load_engine(self.engine)(self.times, each)).sum())


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

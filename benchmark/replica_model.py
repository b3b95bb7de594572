"""Replicas in arrays: continuous batching without a scheduler's code, for many replicas and for stealing.

A replica admits its requests in their order while the cache has room, computes their prompts in chunks and
decodes. Passes are taken STRIDE at a time, and each takes what the time model says of the engine; this is the
one that the simulated GPU has. Left out are SGLang's scheduler, retractions, evictions (a prefix that was
computed once stays) and the CPU. Every request counts for its average in the cache over its life, from its
true length, so memory is managed better than by any scheduler that does not know lengths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.engines import load_engine
from sglang.srt.blend.core.cost.kv_capacity import kv_capacity
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork, causal_pairs
from sglang.srt.blend.core.order.stealing import Backlog, steal
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree
from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts
from sglang.srt.blend.core.pool.workload import Workload
from sglang.srt.hardware_backend.simulated_gpu.srt_platform import STATIC_MEMORY_FRACTION

Ints = NDArray[np.int64]

STRIDE = 16
"""Passes that are taken together."""

CHUNK = 8192
"""Prefill tokens of a pass at most."""

PAUSE = 8
"""Strides until a replica that could take nothing asks again."""

ENGINE = "overlapped"


class Pool:
    """A workload in the order of its prompts; requests are positions in that order.

    Args:
        expected: (n,) output tokens that planning and stealing are told, in the workload's order.
    """

    def __init__(self, workload: Workload, expected: Ints, cost: CostModel) -> None:
        self.workload, self.cost = workload, cost
        self.prompts = SortedPrompts.of(workload.tokens, workload.offsets)
        order = self.prompts.slots
        self.prompt = workload.prompt[order].astype(np.int64)
        self.output = np.maximum(workload.output[order].astype(np.int64), 1)
        self.expected = np.maximum(expected[order], 1)
        self.tree = self.prompts.tree(self.prompt, self.expected, cost)
        self.position = np.argsort(order)
        self.model = StepTimeModel(cost.shape, cost.hardware)
        self.capacity = kv_capacity(cost.shape, cost.hardware, STATIC_MEMORY_FRACTION)

    def planned(self, requests: Ints) -> list[int]:
        """Some requests of the workload as blend admits them, as positions."""
        if not len(requests):
            return []
        part = self.workload.take(requests)
        planner = Planner(self.cost, kv_capacity=self.capacity)
        slots = planner.add(
            part.tokens,
            part.offsets,
            max_new_tokens=part.max_new_tokens,
            known_output=self.expected[self.position[requests]],
        )
        where = np.zeros(int(slots.max()) + 1, np.int64)
        where[slots] = self.position[requests]
        return list(where[planner.plan().slots].tolist())

    def open_tree(self, positions: Ints) -> tuple[Ints, ResourceAwarePrefixTree]:
        """Some positions, ascending, and their tree at expected lengths."""
        mask = np.zeros(len(self.prompt), np.bool_)
        mask[positions] = True
        some = self.prompts.subset(mask)
        where = np.flatnonzero(mask)
        return where, some.tree(self.prompt[where], self.expected[where], self.cost)


@dataclass(eq=False)
class ArrayReplica:
    """One replica.

    Attributes:
        waiting: positions, in order.
        speed: what it does in the time in which the modelled GPU does 1.
        clock: seconds.
        done: modelled seconds of what it has answered.
        prefill_tokens, answers: so far.
    """

    pool: Pool
    waiting: deque[int]
    speed: float = 1.0
    clock: float = 0.0
    done: float = 0.0
    prefill_tokens: int = 0
    answers: int = 0
    pause: int = 0
    _used: float = 0.0
    _held: set[int] = field(default_factory=set)
    _prefill: deque[list[float]] = field(default_factory=deque)
    _ids: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    _left: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    _new: dict[int, int] = field(default_factory=dict)

    @property
    def running(self) -> list[int]:
        """Positions of what has begun and not ended."""
        return [*self._new]

    @property
    def measured(self) -> float:
        """Modelled seconds of what it answered in a second; 1 before there were any."""
        return self.done / self.clock if self.done else 1.0

    @property
    def backlog(self) -> float:
        """Modelled seconds of all that waits and runs."""
        tree = self.pool.open_tree(np.array([*self.waiting, *self._new], np.int64))[1]
        return float((tree.comp - tree.saved + tree.mem).sum())

    def step(self) -> None:
        """Take so many passes, if there is anything to do."""
        self._admit()
        tokens, pairs, finished = self._compute_prompts()
        pool, rows = self.pool, np.minimum(self._left, STRIDE)
        context = pool.prompt[self._ids] + pool.output[self._ids] - self._left
        work = StepWork(
            prefill_tokens=tokens / STRIDE,
            decode_rows=rows.sum() / STRIDE,
            kv_tokens=float((context * rows + rows * (rows + 1) / 2).sum()) / STRIDE,
            prefill_pairs=pairs / STRIDE,
            finished_prefills=len(finished) / STRIDE,
        )
        self.clock += STRIDE * float(load_engine(ENGINE)(pool.model, work)) / self.speed
        self._left = self._left - rows
        self._end(self._ids[self._left <= 0])
        keep = self._left > 0
        started = np.array(finished, np.int64)
        left = pool.output[started] - 1
        self._end(started[left <= 0])
        self._ids = np.concatenate([self._ids[keep], started[left > 0]])
        self._left = np.concatenate([self._left[keep], left[left > 0]])

    def _admit(self) -> None:
        pool, tree = self.pool, self.pool.tree
        while self.waiting:
            position = self.waiting[0]
            path, node = [], int(tree.request_parent[position])
            while node > 0 and node not in self._held:
                path.append(node)
                node = int(tree.parent[node])
            new = max(int(pool.prompt[position] - tree.depth[node]), 1)
            need = new + pool.output[position] / 2
            if self._new and self._used + need > pool.capacity:
                return
            self.waiting.popleft()
            self._held.update(path)
            self._used += need
            self._new[position] = new
            pairs = float(causal_pairs(new, int(pool.prompt[position]) - new))
            self._prefill.append([position, new, pairs / new])

    def _compute_prompts(self) -> tuple[int, float, list[int]]:
        """Tokens and pairs computed in a stride, and the positions of prompts that ended."""
        room, pairs, finished = STRIDE * CHUNK, 0.0, []
        while self._prefill and room:
            first = self._prefill[0]
            part = min(first[1], room)
            first[1] -= part
            room -= int(part)
            pairs += part * first[2]
            if not first[1]:
                finished.append(int(first[0]))
                self._prefill.popleft()
        tokens = STRIDE * CHUNK - room
        self.prefill_tokens += tokens
        return tokens, pairs, finished

    def _end(self, positions: Ints) -> None:
        tree = self.pool.tree
        self.answers += len(positions)
        for position in positions.tolist():
            self._used -= self._new.pop(position) + self.pool.output[position] / 2
        self.done += float((tree.comp - tree.saved + tree.mem)[positions].sum())


def run_replicas(
    pool: Pool, parts: Iterable[Ints], *, stealing: bool, speeds: Iterable[float] | None = None
) -> list[ArrayReplica]:
    """Answer a pool; each replica's `clock` is when it ended.

    Args:
        parts: the workload's requests of each replica.
        stealing: whether a replica with nothing left takes from the one that ends last.
        speeds: of each replica, which nobody is told; 1 by default.
    """
    parts = list(parts)
    replicas = [
        ArrayReplica(pool, deque(pool.planned(part)), speed)
        for part, speed in zip(parts, speeds or [1.0] * len(parts), strict=True)
    ]
    active = set(replicas)
    while active:
        one = min(active, key=lambda replica: replica.clock)
        if stealing and not one.waiting:
            _help(one, replicas)
        if not one.waiting and not one.running:
            active.discard(one)
            continue
        one.step()
    return replicas


def _help(thief: ArrayReplica, replicas: list[ArrayReplica]) -> None:
    thief.pause -= 1
    others = [replica for replica in replicas if replica is not thief and replica.waiting]
    if not others or (thief.pause > 0 and thief.running):
        return
    victim = max(others, key=lambda replica: len(replica.waiting) / replica.measured)
    where, tree = thief.pool.open_tree(np.array([*victim.waiting, *victim.running], np.int64))
    theft = steal(
        tree,
        thief.pool.cost,
        np.isin(where, np.array(victim.waiting, np.int64)),
        victim=Backlog(float((tree.comp - tree.saved + tree.mem).sum()), victim.measured),
        thief=Backlog(thief.backlog, thief.measured),
    )
    chosen = set(where[theft.requests].tolist())
    thief.waiting.extend(position for position in victim.waiting if position in chosen)
    victim.waiting = deque(position for position in victim.waiting if position not in chosen)
    thief.pause = PAUSE

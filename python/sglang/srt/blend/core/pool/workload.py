"""A pool of requests as flat arrays, and what it is made of: tokens, density, sharing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree
from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Workload:
    """n requests in order of submission, with the answers that they will get.

    Attributes:
        tokens: (total,) int32, prompts one after another.
        offsets: (n + 1,) int64, prompt i is tokens[offsets[i]:offsets[i + 1]].
        output: (n,) int32, tokens that each answer will have. A scheduler may not look at it unless `known`.
        max_new_tokens: (n,) int32, the user's cap, at least `output`.
        known: (n,) bool, the length is certain beforehand (ignore_eos): output = max_new_tokens.
        source: (n,) int16, index into `names`: which trace a request comes from.
        names: of the traces.

    Raises:
        ValueError: arrays that do not fit together, or an output length outside 1..max_new_tokens.
    """

    tokens: NDArray[np.int32]
    offsets: Ints
    output: NDArray[np.int32]
    max_new_tokens: NDArray[np.int32]
    known: NDArray[np.bool_]
    source: NDArray[np.int16]
    names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        n = len(self.offsets) - 1
        for name in ("output", "max_new_tokens", "known", "source"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"workload: {name} has {len(getattr(self, name))} entries for {n} requests")
        if n and (self.offsets[0] != 0 or self.offsets[-1] != len(self.tokens)):
            raise ValueError("workload: offsets must begin at 0 and end at the number of tokens")
        if np.any(self.output > self.max_new_tokens) or np.any(self.output < 1):
            raise ValueError("workload: every output length must be between 1 and max_new_tokens")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def prompt(self) -> Ints:
        """Tokens of each prompt, (n,)."""
        return np.diff(self.offsets)

    @property
    def total_tokens(self) -> int:
        """Prompt and output tokens, shared ones included: the numerator of throughput (paper 6.1)."""
        return len(self.tokens) + int(self.output.sum(dtype=np.int64))

    def prompt_tokens(self, request: int) -> NDArray[np.int32]:
        """Token ids of one prompt, int32 (length,): a view."""
        return self.tokens[self.offsets[request] : self.offsets[request + 1]]

    def take(self, order: Ints) -> Workload:
        """A workload of the requests `order`, (m,) indices, in that order."""
        lengths = self.prompt[order]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        taken = np.repeat(self.offsets[order] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Workload(
            tokens=self.tokens[taken],
            offsets=offsets,
            output=self.output[order],
            max_new_tokens=self.max_new_tokens[order],
            known=self.known[order],
            source=self.source[order],
            names=self.names,
        )

    def depth_first_order(self) -> Ints:
        """Requests, (n,) indices, in lexicographic order of their prompts: a walk of the prefix tree."""
        return self._sorted.slots

    def tree(self, cost: CostModel) -> ResourceAwarePrefixTree:
        """The prefix tree over `depth_first_order`, with true output lengths."""
        order = self._sorted.slots
        return self._sorted.tree(self.prompt[order], self.output[order].astype(np.int64), cost)

    def statistics(self, cost: CostModel) -> WorkloadStatistics:
        """Totals of the prefix tree: what the workload is made of."""
        tree = self.tree(cost)
        return WorkloadStatistics(
            requests=len(self),
            prompt_tokens=len(self.tokens),
            output_tokens=int(self.output.sum(dtype=np.int64)),
            shared_tokens=tree.shared_tokens,
            comp=float(tree.comp.sum()),
            saved=float(tree.saved.sum()),
            mem=float(tree.mem.sum()),
        )

    @cached_property
    def _sorted(self) -> SortedPrompts:
        """Sorted once: orders, trees and statistics all begin with it."""
        return SortedPrompts.of(self.tokens, self.offsets)


@dataclass(frozen=True, slots=True)
class WorkloadStatistics:
    """What a workload is made of (paper 4.1).

    Attributes:
        requests: how many.
        prompt_tokens, output_tokens: of all of them, shared ones included.
        shared_tokens: prompt tokens that a depth-first walk does not compute again.
        comp, saved, mem: seconds of compute without sharing, of compute that sharing saves, and of KV
            reads, at peak rates.
    """

    requests: int
    prompt_tokens: int
    output_tokens: int
    shared_tokens: int
    comp: float
    saved: float
    mem: float

    @property
    def sharing(self) -> float:
        """Share of the prompt tokens that a depth-first walk does not compute again, in [0, 1]."""
        return self.shared_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def density(self) -> float:
        """Comp / Mem with that sharing, dimensionless; infinite when nothing is decoded."""
        return (self.comp - self.saved) / self.mem if self.mem else float("inf")


def concatenate(parts: Sequence[Workload]) -> Workload:
    """The requests of all parts, one part after another; traces of equal name become one."""
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    starts = np.cumsum([0] + [len(part.tokens) for part in parts])
    return Workload(
        tokens=np.concatenate([part.tokens for part in parts]),
        offsets=np.concatenate(
            [[0]] + [part.offsets[1:] + start for part, start in zip(parts, starts[:-1], strict=True)]
        ),
        output=np.concatenate([part.output for part in parts]),
        max_new_tokens=np.concatenate([part.max_new_tokens for part in parts]),
        known=np.concatenate([part.known for part in parts]),
        source=np.concatenate(
            [np.array([names.index(n) for n in part.names], np.int16)[part.source] for part in parts]
        ),
        names=names,
    )

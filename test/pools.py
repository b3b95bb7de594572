"""Pools of requests for tests, pictures and benchmarks of the planner: arrays, no model, no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import LLAMA_3_8B
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.order.plan import PlannerOptions
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree
from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts


@cache
def llama_on_a100() -> CostModel:
    """The paper's main set-up."""
    return CostModel(ModelShape.from_config(LLAMA_3_8B), load_hardware("a100-80gb"))


@dataclass(frozen=True)
class Pool:
    """n requests.

    Attributes:
        prompts: token ids, each int32 (length,).
        output: int64 (n,) true output tokens; the planner is told where `known` is set.
        known: bool (n,).
        max_new: int64 (n,).
        namespace: int32 (n,).
    """

    prompts: list[NDArray[np.int32]]
    output: NDArray[np.int64]
    known: NDArray[np.bool_]
    max_new: NDArray[np.int64]
    namespace: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def tokens(self) -> NDArray[np.int32]:
        """All prompts, back to back."""
        return np.concatenate([np.zeros(0, np.int32), *self.prompts])

    @property
    def offsets(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.array([len(p) for p in self.prompts], np.int64)

    def add_to(self, planner: Planner, which: slice = slice(None)) -> NDArray[np.int64]:
        """Give (some of) the requests to a planner; their slots."""
        part = replace(
            self,
            prompts=self.prompts[which],
            **{name: getattr(self, name)[which] for name in ("output", "known", "max_new", "namespace")},
        )
        return planner.add(
            part.tokens,
            part.offsets,
            max_new_tokens=part.max_new.astype(np.int32),
            known_output=np.where(part.known, part.output, 0).astype(np.int32),
            namespace=part.namespace,
        )

    def sorted(self) -> SortedPrompts:
        """The requests in order of their prompts; slots are indices into the pool."""
        return SortedPrompts.of(self.tokens, self.offsets, self.namespace)

    def tree(self, cost: CostModel | None = None) -> ResourceAwarePrefixTree:
        """The tree with true output lengths."""
        prompts = self.sorted()
        order = prompts.slots
        return prompts.tree(self.lengths[order], self.output[order], cost or llama_on_a100())


def pool(
    prompts: Sequence[Sequence[int]],
    output: int | Sequence[int] = 8,
    *,
    known: bool = True,
    max_new: int | Sequence[int] | None = None,
    namespace: int | Sequence[int] = 0,
) -> Pool:
    """A pool of the given prompts; numbers hold for every request."""
    n = len(prompts)
    outputs = np.broadcast_to(np.asarray(output, np.int64), n).copy()
    return Pool(
        prompts=[np.asarray(p, np.int32) for p in prompts],
        output=outputs,
        known=np.full(n, known),
        max_new=outputs if max_new is None else np.broadcast_to(np.asarray(max_new, np.int64), n).copy(),
        namespace=np.broadcast_to(np.asarray(namespace, np.int32), n).copy(),
    )


def random_pool(
    seed: int, n: int, *, vocabulary: int = 3, longest: int = 12, stretch: int = 1, known: bool = True
) -> Pool:
    """Short prompts over few tokens, so that prefixes, duplicates and empty prompts abound.

    Outputs spread over five orders of magnitude. `stretch` repeats every token, so that prompts are long
    without a richer tree.
    """
    rng = np.random.default_rng(seed)
    prompts = [
        np.repeat(rng.integers(0, vocabulary, rng.integers(0, longest + 1)), stretch).tolist()
        for _ in range(n)
    ]
    output = np.exp(rng.uniform(0.0, 11.0, n)).astype(np.int64)
    return pool(prompts, output, known=known, max_new=output + rng.integers(0, 100, n))


def mixed_pool(seed: int, n: int, *, known: bool = True, scale: int = 8) -> Pool:
    """A mixture like the paper's: a shared few-shot task, code completion, chat and long generation.

    Each trace has its own system prompt; lengths have the spread of production traces. `scale` divides all
    lengths, to keep it small.
    """
    rng = np.random.default_rng(seed)
    kinds = rng.choice(4, n, p=[0.35, 0.3, 0.25, 0.1])
    vocabulary = 50_000
    system = [rng.integers(0, vocabulary, size // scale) for size in (64, 128, 96, 64)]
    subjects = [rng.integers(0, vocabulary, 690 // scale) for _ in range(12)]
    prompts, output = [], np.empty(n, np.int64)
    for i, kind in enumerate(kinds):
        mean_in, mean_out, spread = [(50, 2, 0.3), (2300, 23, 0.8), (400, 500, 1.0), (60, 16_000, 0.5)][kind]
        own = rng.integers(0, vocabulary, _log_normal(rng, mean_in / scale, spread))
        shared = [subjects[rng.integers(len(subjects))]] if kind == 0 else []
        prompts.append(np.concatenate([system[kind], *shared, own]).tolist())
        output[i] = _log_normal(rng, max(mean_out / scale, 2), spread)
    return pool(prompts, output, known=known, max_new=output if known else np.full(n, 40_000 // scale))


def _log_normal(rng: np.random.Generator, mean: float, sigma: float) -> int:
    return max(1, round(float(rng.lognormal(np.log(mean) - sigma * sigma / 2, sigma))))


def planner_for(
    requests: Pool | None = None, *, kv_capacity: int = 100_000, seed: int = 0, **options: Any
) -> Planner:
    """A planner of the paper's set-up, holding `requests`."""
    planner = Planner(llama_on_a100(), kv_capacity=kv_capacity, options=PlannerOptions(**options), seed=seed)
    if requests is not None:
        requests.add_to(planner)
    return planner

"""Synthetic text jobs whose answers have lengths that nobody knows, with caps as users set them.

All is made up: no published statistics stand behind these, only the shapes that such jobs have. Prompts are
random token ids.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from benchmark.workloads.lengths import LengthDistribution
from benchmark.workloads.traces import VOCABULARY
from numpy.typing import NDArray

from sglang.srt.blend.core.pool.workload import Workload

Ints = NDArray[np.int64]


def document_questions(seed: int, *, documents: int = 16, questions: int = 15) -> Workload:
    """Questions about documents of 12,000 to 20,000 tokens, shuffled; answers of 150 tokens, cap 1,024."""
    rng = np.random.default_rng([seed, 101])
    sizes = rng.integers(12_000, 20_000, documents)
    shared = [rng.integers(1000, VOCABULARY, size) for size in sizes]
    prompts = [
        np.concatenate([text, rng.integers(1000, VOCABULARY, rng.integers(12, 60))])
        for text in shared
        for _ in range(questions)
    ]
    output = LengthDistribution(150, 120, 1, 1024).draw(len(prompts), rng)
    return _pool("documents", prompts, output, 1024, rng)


def reasoning(seed: int, *, requests: int = 150) -> Workload:
    """Problems of 100 to 400 tokens that share nothing; answers of 2,500 tokens on average, cap 10,000."""
    rng = np.random.default_rng([seed, 102])
    prompts = [rng.integers(1000, VOCABULARY, rng.integers(100, 400)) for _ in range(requests)]
    output = LengthDistribution(2500, 2250, 100, 10_000).draw(requests, rng)
    return _pool("reasoning", prompts, output, 10_000, rng)


def rollouts(seed: int, *, prompts: int = 32, samples: int = 16) -> Workload:
    """Samples of each of some prompts: prompts have means around 1,000 tokens, samples vary; cap 4,096."""
    rng = np.random.default_rng([seed, 103])
    texts = [rng.integers(1000, VOCABULARY, rng.integers(150, 500)) for _ in range(prompts)]
    means = np.repeat(LengthDistribution(1000, 750, 100, 4000).draw(prompts, rng), samples)
    output = np.clip(means * rng.lognormal(-0.08, 0.4, len(means)), 16, 4096).astype(np.int64)
    return _pool("rollouts", [text for text in texts for _ in range(samples)], output, 4096)


OPEN_LENGTHS: dict[str, Callable[[int], Workload]] = {
    "documents": document_questions,
    "reasoning": reasoning,
    "rollouts": rollouts,
}
"""By name: a workload from a seed."""


def _pool(
    name: str, prompts: list[Ints], output: Ints, cap: int, shuffle: np.random.Generator | None = None
) -> Workload:
    n = len(prompts)
    workload = Workload(
        tokens=np.concatenate(prompts).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum([len(prompt) for prompt in prompts])]),
        output=output.astype(np.int32),
        max_new_tokens=np.full(n, cap, np.int32),
        known=np.zeros(n, np.bool_),
        source=np.zeros(n, np.int16),
        names=(name,),
    )
    return workload if shuffle is None else workload.take(shuffle.permutation(n))

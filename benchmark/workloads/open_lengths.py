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


def reasoning(seed: int, *, requests: int = 120, mean: int = 1000) -> Workload:
    """Problems of 100 to 400 tokens that share nothing; answers of `mean` tokens, the cap four times that."""
    rng = np.random.default_rng([seed, 102])
    prompts = [rng.integers(1000, VOCABULARY, rng.integers(100, 400)) for _ in range(requests)]
    output = LengthDistribution(mean, 0.9 * mean, 16, 4 * mean).draw(requests, rng)
    return _pool("reasoning", prompts, output, 4 * mean)


def rollouts(seed: int, *, prompts: int = 16, samples: int = 16, mean: int = 500) -> Workload:
    """Samples of some prompts; each prompt has its own mean, around `mean`; the cap is four times that."""
    rng = np.random.default_rng([seed, 103])
    texts = [rng.integers(1000, VOCABULARY, rng.integers(150, 500)) for _ in range(prompts)]
    means = np.repeat(LengthDistribution(mean, 0.75 * mean, 16, 4 * mean).draw(prompts, rng), samples)
    output = np.clip(means * rng.lognormal(-0.08, 0.4, len(means)), 16, 4 * mean).astype(np.int64)
    return _pool("rollouts", [text for text in texts for _ in range(samples)], output, 4 * mean)


OPEN_LENGTHS: dict[str, Callable[[int], Workload]] = {
    "reasoning": reasoning,
    "rollouts": rollouts,
}
"""By name: a workload from a seed."""


def _pool(name: str, prompts: list[Ints], output: Ints, cap: int) -> Workload:
    n = len(prompts)
    return Workload(
        tokens=np.concatenate(prompts).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum([len(prompt) for prompt in prompts])]),
        output=output.astype(np.int32),
        max_new_tokens=np.full(n, cap, np.int32),
        known=np.zeros(n, np.bool_),
        source=np.zeros(n, np.int16),
        names=(name,),
    )

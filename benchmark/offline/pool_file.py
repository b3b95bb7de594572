"""A pool of requests as a file between processes whose environments share nothing but NumPy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Pool:
    """n requests in order of submission.

    Attributes:
        prompts: token ids of each.
        output: (n,) tokens that each answer will have.
        max_new_tokens: (n,) the user's cap.
        known: (n,) whether a scheduler may know `output` beforehand.
    """

    prompts: list[list[int]]
    output: NDArray[np.int32]
    max_new_tokens: NDArray[np.int32]
    known: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.prompts)


def write_pool(path: Path, workload: Any) -> None:
    """Write a `core.workload.Workload`."""
    fields = ("tokens", "offsets", "output", "max_new_tokens", "known")
    np.savez(path, **{name: getattr(workload, name) for name in fields})


def read_pool(path: str) -> Pool:
    with np.load(path) as file:
        tokens, offsets = file["tokens"].tolist(), file["offsets"].tolist()
        prompts = [tokens[a:b] for a, b in itertools.pairwise(offsets)]
        return Pool(prompts, file["output"], file["max_new_tokens"], file["known"])


def warm_up_pool() -> Pool:
    """A long prompt, and short ones with longer answers: what compiles or allocates lazily does it now."""
    rng = np.random.default_rng(1)
    lengths, output = [1500, *[64] * 12], np.array([2, *[24] * 12], np.int32)
    prompts = [rng.integers(3, 256, length).tolist() for length in lengths]  # in every vocabulary
    return Pool(prompts, output, output, np.ones(len(output), np.bool_))


def check_lengths(pool: Pool, lengths: list[int]) -> None:
    """Every engine must do the same work.

    Raises:
        RuntimeError: an answer is shorter or longer than the workload says.
    """
    wrong = [i for i, length in enumerate(lengths) if length != pool.output[i]]
    if wrong:
        i = wrong[0]
        raise RuntimeError(
            f"{len(wrong)} of {len(pool)} answers have a wrong length: request {i} has {lengths[i]} tokens"
            f" instead of {pool.output[i]}"
        )

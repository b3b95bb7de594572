"""Jobs that nobody chose: what is shared, how long answers are and which caps are set are drawn at random.

    python -m benchmark.random_jobs --jobs 2 --json build/random_jobs.json
    python -m benchmark.random_jobs --engine mixed --pool 17   # one job again

Jobs of one to three parts and up to 3,000 requests, no length known, go the way of `benchmark.small_pools`:
under blend and under fcfs, lpm, dfs-weight and lof, on the same simulated GPU, whose cache holds a part of
each job. They show kinds of work on which blend loses before somebody brings them.
"""

from __future__ import annotations

import sys

import numpy as np
from benchmark import small_pools
from benchmark.small_pools import Ints, pool_of
from benchmark.workloads.traces import VOCABULARY
from numpy.typing import NDArray

from sglang.srt.blend.core.pool.workload import Workload

Tokens = NDArray[np.int32]

SHARING = ("nothing", "template", "documents", "samples", "sessions")
"""What the requests of a part share: a template; each document with the other questions to it; a prompt with
its other samples; a session's turns all that was said before."""

MOST, LONGEST = 3_000, 8_192
"""Requests of a job, and tokens of an answer."""


def random_job(seed: int, number: int) -> tuple[Workload, list[str], int]:
    """Requests as they are or shuffled; what those of each part share, and KV tokens of the cache.

    The KV of a job, each shared prefix once, is three to eight times the cache, unless so many tokens are in
    more requests than a job has, or one request needs a larger cache.
    """
    rng = np.random.default_rng([1, seed, number])  # other numbers than those of small pools
    capacity, parts = int(_between(rng, 40_000, 200_000)), int(rng.integers(1, 4))
    kinds = [str(kind) for kind in rng.choice(SHARING, parts)]
    prompts: list[Tokens] = []
    output, caps = [], []
    for kind in kinds:
        drawn = _prompts(kind, rng, capacity * rng.uniform(3, 8) / parts, MOST // parts)
        answers = _answers(np.array([mean for _, mean in drawn]), rng)
        prompts += [prompt for prompt, _ in drawn]
        output.append(answers)
        caps.append(np.full(len(answers), _cap(answers, rng)))
    answers, cap = np.concatenate(output), np.concatenate(caps)
    workload = pool_of(prompts, np.minimum(answers, cap), cap, name="random job")
    if rng.random() < 0.5:
        workload = workload.take(rng.permutation(len(workload)))
    longest = int((workload.prompt + workload.max_new_tokens).max())
    return workload, kinds, max(capacity, longest * 5 // 4 + 16)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Any magnitude is as likely as any other."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _prompts(kind: str, rng: np.random.Generator, kv_tokens: float, most: int) -> list[tuple[Tokens, float]]:
    """Prompts that share what their kind shares, and the mean answer of each in output tokens.

    Args:
        kv_tokens: of all of them, each shared prefix once; the last ones may go beyond it.
        most: prompts.
    """

    def text(mean: float, spread: float = 0.5) -> Tokens:
        length = max(4, round(mean * rng.lognormal(0.0, spread)))
        return rng.integers(1000, VOCABULARY, length, dtype=np.int32)

    own, answer, readers = _between(rng, 20, 3_000), _between(rng, 3, 2_500), int(_between(rng, 2, 40))
    document, templated = _between(rng, 300, 12_000), kind == "template" or rng.random() < 0.5
    head = text(_between(rng, 50, 3_000)) if templated else np.empty(0, np.int32)
    drawn: list[tuple[Tokens, float]] = []
    while kv_tokens > 0 and len(drawn) < most:
        if kind == "documents":
            shared, size = np.concatenate([head, text(document, 0.3)]), min(own, 200)
            group = [np.concatenate([shared, text(size)]) for _ in range(readers)]
        elif kind == "samples":
            group = [np.concatenate([head, text(own)])] * readers
        elif kind == "sessions":
            group = [head]
            for _ in range(min(readers, 15)):
                group.append(np.concatenate([group[-1], text(min(own, 800))]))
            group = group[1:]
        else:
            group = [np.concatenate([head, text(own)])]
        mean = answer * rng.lognormal(0.0, 0.6) if len(group) > 1 else answer
        drawn += [(prompt, mean) for prompt in group]
        kv_tokens -= max(map(len, group)) - len(head) + len(group) * mean
    return drawn[:most]


def _answers(mean: NDArray[np.float64], rng: np.random.Generator) -> Ints:
    """Output tokens (n,) that vary little or much; of every fourth part, some are many times as long."""
    spread = rng.uniform(0.05, 1.3)
    tokens = mean * rng.lognormal(-(spread**2) / 2, spread, len(mean))
    if rng.random() < 0.25:
        tokens[rng.random(len(mean)) < rng.uniform(0.05, 0.5)] *= _between(rng, 3, 15)
    return np.asarray(np.clip(np.rint(tokens), 1, LONGEST), np.int64)


def _cap(answers: Ints, rng: np.random.Generator) -> int:
    """What a user sets: the power of two that 98% keep, or as always."""
    fits = 1 << int(np.ceil(np.log2(max(np.quantile(answers, 0.98), 4))))
    return int(rng.choice([fits, LONGEST // 2, LONGEST]))


if __name__ == "__main__":
    sys.exit(small_pools.main(random_job, "random_jobs", __doc__, pools=16, part=2))

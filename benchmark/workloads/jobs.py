"""Jobs that people run offline, synthetic: no output length is known, caps are what users set.

Shapes (who shares what, how answers vary) are such jobs'; sizes are assumptions, chosen so that the KV of
each job is several times what an A100-40GB holds for Llama-3-8B. Prompts are random token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from benchmark.workloads.lengths import LengthDistribution as Lengths
from benchmark.workloads.traces import VOCABULARY
from numpy.typing import NDArray

from sglang.srt.blend.core.pool.workload import Workload

Ints = NDArray[np.int64]
Tokens = NDArray[np.int32]


def documents(rng: np.random.Generator) -> Workload:
    """20 documents of 12 to 20 thousand tokens, 30 short questions to each, shuffled."""
    texts = _texts(rng, rng.integers(12_000, 20_001, 20))
    prompts = [np.concatenate([text, question]) for text in texts for question in _short(rng, 30, 20, 60)]
    output = Lengths(150, 120, 4, 1024).draw(len(prompts), rng)
    return _pool(prompts, output, 1024, order=rng.permutation(len(prompts)))


def reasoning(rng: np.random.Generator) -> Workload:
    """250 problems that share nothing, answers of 2,500 tokens, the cap at 10,000."""
    output = Lengths(2_500, 2_000, 100, 10_000).draw(250, rng)
    return _pool(_short(rng, 250, 100, 400), output, 10_000)


def rollouts(rng: np.random.Generator) -> Workload:
    """16 samples of each of 48 prompts; a prompt has a mean length, around 1,000 tokens, its samples vary."""
    texts = _short(rng, 48, 150, 500)
    means = np.repeat(Lengths(1_000, 750, 32, 4_096).draw(48, rng), 16)
    output = np.clip(means * rng.lognormal(-0.08, 0.4, len(means)), 16, 4_096).astype(np.int64)
    return _pool([text for text in texts for _ in range(16)], output, 4_096)


def agents(rng: np.random.Generator) -> Workload:
    """60 sessions of 12 turns with one system prompt; a turn's prompt is all before it; turn by turn."""
    system = _texts(rng, [1_500])[0]
    turns: list[list[Tokens]] = []
    for _ in range(60):
        history, session = system, []
        for more in _short(rng, 12, 100, 900):
            history = np.concatenate([history, more])
            session.append(history)
        turns.append(session)
    prompts = [session[turn] for turn in range(12) for session in turns]
    return _pool(prompts, Lengths(180, 150, 8, 1_024).draw(len(prompts), rng), 2_048)


def long_prompts(rng: np.random.Generator) -> Workload:
    """300 prompts of 12,000 tokens that share nothing, answers of 100."""
    return _pool(_texts(rng, [12_000] * 300), Lengths(100, 40, 10, 512).draw(300, rng), 512)


def alike(rng: np.random.Generator) -> Workload:
    """2,000 prompts of 500 tokens, answers of 200: nothing to blend."""
    return _pool(_texts(rng, [500] * 2_000), np.full(2_000, 200), 512)


def translation(rng: np.random.Generator) -> Workload:
    """1,500 texts under one instruction; a translation is about as long as its text."""
    lengths = Lengths(400, 350, 30, 2_000).draw(1_500, rng)
    output = np.maximum(lengths * rng.normal(1.1, 0.15, 1_500), 8).astype(np.int64)
    return _pool(_after(_texts(rng, [120])[0], _texts(rng, lengths)), output, 4_096)


def classification(rng: np.random.Generator) -> Workload:
    """5,000 texts of 250 tokens under one instruction with examples; a label is 1 to 6 tokens."""
    texts = _texts(rng, Lengths(250, 150, 20, 1_000).draw(5_000, rng))
    return _pool(_after(_texts(rng, [900])[0], texts), rng.integers(1, 7, 5_000), 16)


def extraction(rng: np.random.Generator) -> Workload:
    """800 documents of 1 to 4 thousand tokens under one of two schemas; JSON of about 250 tokens."""
    schemas = _texts(rng, [1_200, 700])
    texts = _texts(rng, rng.integers(1_000, 4_001, 800))
    prompts = [np.concatenate([schemas[i % 2], text]) for i, text in enumerate(texts)]
    return _pool(prompts, Lengths(250, 90, 40, 1_024).draw(800, rng), 1_024)


def images(rng: np.random.Generator) -> Workload:
    """250 images of 576 to 2,304 tokens, 4 questions to each after one instruction, image by image."""
    pictures = _texts(rng, 576 * rng.integers(1, 5, 250))
    system = _texts(rng, [60])[0]
    prompts = [
        np.concatenate([system, picture, question])
        for picture in pictures
        for question in _short(rng, 4, 10, 50)
    ]
    return _pool(prompts, Lengths(120, 140, 2, 1_024).draw(len(prompts), rng), 1_024)


def completion(rng: np.random.Generator) -> Workload:
    """1,000 code completions: prompts and answers vary as in the Azure trace of 2023 (see `traces`)."""
    prompts = _texts(rng, Lengths(2_048, 1_960, 32, 7_437).draw(1_000, rng))
    return _pool(prompts, Lengths(28, 59, 1, 1_024).draw(1_000, rng), 1_024)


def mixture(rng: np.random.Generator) -> Workload:
    """Rollouts, classification and images in one pool, shuffled."""
    parts = [rollouts(rng), classification(rng), images(rng)]
    prompts = [part.prompt_tokens(i) for part in parts for i in range(len(part))]
    output = np.concatenate([part.output for part in parts])
    caps = np.concatenate([part.max_new_tokens for part in parts])
    return _pool(prompts, output, caps, order=rng.permutation(len(prompts)))


JOBS: dict[str, Callable[[np.random.Generator], Workload]] = {
    job.__name__.replace("_", " "): job
    for job in (
        documents,
        reasoning,
        rollouts,
        agents,
        long_prompts,
        alike,
        translation,
        classification,
        extraction,
        images,
        completion,
        mixture,
    )
}
"""By name."""


def make_job(name: str, *, seed: int = 0) -> Workload:
    """A job by its name; equal arguments give equal tokens.

    Raises:
        KeyError: an unknown name.
    """
    return JOBS[name](np.random.default_rng([seed, 200 + list(JOBS).index(name)]))


def _texts(rng: np.random.Generator, lengths: Sequence[int] | Ints) -> list[Tokens]:
    return [rng.integers(1000, VOCABULARY, length, dtype=np.int32) for length in lengths]


def _short(rng: np.random.Generator, count: int, low: int, high: int) -> list[Tokens]:
    return _texts(rng, rng.integers(low, high + 1, count))


def _after(prefix: Tokens, texts: Sequence[Tokens]) -> list[Tokens]:
    return [np.concatenate([prefix, text]) for text in texts]


def _pool(
    prompts: Sequence[Tokens], output: NDArray[np.integer], cap: int | Ints, *, order: Ints | None = None
) -> Workload:
    """A workload of prompts, in another order if one is given."""
    n = len(prompts)
    pool = Workload(
        tokens=np.concatenate(prompts).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum([len(prompt) for prompt in prompts])]),
        output=np.asarray(output, np.int32),
        max_new_tokens=np.broadcast_to(cap, n).astype(np.int32),
        known=np.zeros(n, np.bool_),
        source=np.zeros(n, np.int16),
        names=("job",),
    )
    return pool if order is None else pool.take(order)

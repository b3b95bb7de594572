"""How an inference engine combines the parts of a step: one after another, or overlapped.

`alternating`: a pass holds prefill or decode, never both (SGLang's default).
`mixed`: prefill chunks and decode rows share a pass, operators run one after another (vLLM,
--enable-mixed-chunk): the weights are read once for both.
`pdmux`: a prefill batch and decode steps run beside each other, each on its part of the GPU (--enable-pdmux).
`overlapped`: within one pass, compute and KV reads run at the same time (NanoFlow-like; not in upstream).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blend.core.cost.hardware import Hardware
from sglang.srt.blend.core.cost.pdmux import PdmuxTimes, side_by_side, sm_step
from sglang.srt.blend.core.cost.step_time import StepParts, StepTimeModel, StepWork, causal_pairs

Floats = NDArray[np.float64]


def alternating(model: StepTimeModel, work: StepWork) -> Floats:
    """Seconds of a step whose prefill runs in one pass and whose decode rows run in another."""
    return mixed(model, work.only_prefill()) + mixed(model, work.only_decode())


def mixed(model: StepTimeModel, work: StepWork) -> Floats:
    """Seconds of a step in one pass whose operators run one after another."""
    parts = model.parts(work)
    return parts.compute + parts.decode_attention + parts.overhead


def overlapped(model: StepTimeModel, work: StepWork) -> Floats:
    """Seconds of a step in one pass that hides compute behind memory traffic, or the reverse."""
    return overlap(model.parts(work), model.assumptions.interference)


def overlap(parts: StepParts, interference: float) -> Floats:
    """Seconds of parts that run at once.

    The longer of compute and memory traffic (weights and KV: one bus), plus the part of the shorter
    that interference keeps from being hidden. Never worse than not overlapping.

    Args:
        interference: that share, in [0, 1].
    """
    hidden = np.minimum(parts.compute, parts.decode_attention)
    together = np.maximum(parts.compute, parts.memory) + interference * hidden
    return np.minimum(together, parts.compute + parts.decode_attention) + parts.overhead


def pdmux(model: StepTimeModel, work: StepWork) -> Floats:
    """Seconds of a turn whose prefill and decode run beside each other, in the division that suits them.

    No more than a bound: what turns of the real loop take depends on what was launched before them, which
    `two_streams` follows.

    Raises:
        ValueError: the GPU cannot be divided.
    """
    times = PdmuxTimes(model)
    busy = np.asarray(model.parts(work).overhead > 0.0, np.float64)
    return np.asarray(side_by_side(times, work.only_prefill(), work.only_decode()) + busy * times.turn)


Engine = Callable[[StepTimeModel, StepWork], Floats]
_ENGINES: dict[str, Engine] = {
    "alternating": alternating,
    "mixed": mixed,
    "pdmux": pdmux,
    "overlapped": overlapped,
}
ENGINE_FLAGS = {
    "alternating": "no flag: SGLang's default",
    "mixed": "--enable-mixed-chunk",
    "pdmux": "--enable-pdmux --disable-overlap-schedule --chunked-prefill-size -1",
    "overlapped": "NanoFlow-like; not in upstream",
}
"""How SGLang becomes each engine, for people."""


def engine_names() -> list[str]:
    """The names that `load_engine` knows."""
    return list(_ENGINES)


def engines_on(hardware: Hardware) -> list[str]:
    """The engines that can be modelled on a GPU: all, or all but `pdmux`."""
    try:
        sm_step(hardware)
    except ValueError:
        return [name for name in _ENGINES if name != "pdmux"]
    return engine_names()


def load_engine(name: str) -> Engine:
    """The formula of an engine: from a `StepTimeModel` and a `StepWork` to seconds.

    Args:
        name: one of `engine_names`.

    Raises:
        ValueError: the name is unknown.
    """
    try:
        return _ENGINES[name]
    except KeyError:
        raise ValueError(f"engine {name!r}: unknown; choose one of {', '.join(_ENGINES)}") from None


@dataclass(frozen=True, slots=True)
class PoolWork:
    """All the work of a pool, each shared prefix computed once, in the units of `StepWork`.

    Attributes:
        prefill_tokens: prompt tokens computed.
        decode_rows: tokens decoded, one row each.
        kv_tokens: KV tokens that the decode rows read.
        prefill_pairs: query-key pairs of prefill attention.
        requests: how many there are.
        kv_held: KV tokens that the cache has to hold meanwhile, summed over decoding steps: all who share a
            prefix read it, and one of them holds it.
    """

    prefill_tokens: float
    decode_rows: float
    kv_tokens: float
    prefill_pairs: float
    requests: float
    kv_held: float

    @classmethod
    def of(cls, prompt: ArrayLike, output: ArrayLike, shared: ArrayLike) -> PoolWork:
        """The work of n requests.

        Args:
            prompt, output: (n,) tokens. The first output token comes from the prefill, so a request
                decodes output - 1 times, reading its prompt and what it generated before.
            shared: (n,) prompt tokens that each request takes from the cache.
        """
        p, d, s = (np.asarray(x, np.float64) for x in (prompt, output, shared))
        decodes = np.maximum(d - 1.0, 0.0)
        return cls(
            prefill_tokens=float((p - s).sum()),
            decode_rows=float(decodes.sum()),
            kv_tokens=float((p * decodes + decodes * (decodes + 1.0) / 2.0).sum()),
            prefill_pairs=float(causal_pairs(p - s, s).sum()),
            requests=float(p.size),
            kv_held=float(((p - s) * decodes + decodes * (decodes + 1.0) / 2.0).sum()),
        )

    def full_passes(self, kv_capacity: float) -> int:
        """Passes that it takes at least to hold all KV as long as it is read, with a full cache in each."""
        return math.ceil(self.kv_held / kv_capacity)


def practical_optimum(
    model: StepTimeModel, engine: str, pool: PoolWork, *, max_step_tokens: int = 8192, min_steps: int = 1
) -> float:
    """Seconds in which no schedule could beat the engine: every step alike and perfectly blended.

    The pool is cut into equal steps of the most efficient token count up to `max_step_tokens`, each with
    its share of the KV traffic, and the engine's own formula gives the time (to the whole tile: within
    1%). Overhead per pass is left out. KV capacity is ignored, and so are the lengths of single requests
    unless `min_steps` says how many tokens the longest answer has: it takes a pass for each, and a pool
    that is small beside it must be spread over more, less efficient passes.

    Args:
        engine: one of `engine_names`.
        max_step_tokens: rows of a pass at most.
        min_steps: passes at least.

    Raises:
        ValueError: the engine is unknown.
    """
    run = load_engine(engine)
    if engine == "pdmux":
        return _multiplexed_optimum(PdmuxTimes(model), pool, max_step_tokens, min_steps)
    if engine == "alternating" and pool.prefill_tokens and pool.decode_rows:
        # Its passes share nothing, so each kind may have the token count that suits it.
        prefill = replace(pool, decode_rows=0, kv_tokens=0)
        halves = (prefill, replace(pool, prefill_tokens=0, prefill_pairs=0))
        return sum(
            practical_optimum(
                model, "mixed", half, max_step_tokens=max_step_tokens, min_steps=min_steps if i else 1
            )
            for i, half in enumerate(halves)
        )
    rows = pool.prefill_tokens + pool.decode_rows
    if rows <= 0:
        return 0.0
    tokens = np.arange(128, max(max_step_tokens, 128) + 1, 128, dtype=np.float64)
    steps = np.maximum(rows / tokens, min_steps)
    work = StepWork(
        prefill_tokens=pool.prefill_tokens / steps,
        decode_rows=pool.decode_rows / steps,
        kv_tokens=pool.kv_tokens / steps,
        prefill_pairs=pool.prefill_pairs / steps,
        finished_prefills=(pool.requests if pool.prefill_tokens else 0.0) / steps,
    )
    seconds = steps * (run(model, work) - model.assumptions.step_overhead)
    return float(np.min(seconds))


def _multiplexed_optimum(times: PdmuxTimes, pool: PoolWork, max_step_tokens: int, min_steps: int) -> float:
    """`practical_optimum` of PD multiplexing: prefill batches of their best size beside even decode steps."""
    rows = np.arange(128, max(max_step_tokens, 128) + 1, 128, dtype=np.float64)

    def batch(count: Floats | float) -> StepWork:
        return StepWork(
            prefill_tokens=pool.prefill_tokens / count,
            prefill_pairs=pool.prefill_pairs / count,
            finished_prefills=pool.requests / count,
        )

    counts = np.maximum(pool.prefill_tokens / rows, 1.0)
    batches = float(counts[np.argmin(counts * times.load(batch(counts), times.total).seconds)])
    steps = np.maximum(pool.decode_rows / rows, min_steps)
    step = StepWork(decode_rows=pool.decode_rows / steps, kv_tokens=pool.kv_tokens / steps)
    seconds = steps * side_by_side(times, batch(batches), step, batches=batches / steps)
    return float(np.min(seconds))

"""Which division of a GPU suits a pool under PD multiplexing: there prefill lasts as long as decode."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sglang.srt.blend.core.cost.engines import PoolWork
from sglang.srt.blend.core.cost.pdmux import Division, PdmuxConfig, PdmuxTimes, sm_step
from sglang.srt.blend.core.cost.step_time import StepWork

_FILL = 0.7
"""Share of the KV capacity that running requests fill on average, as in `core.step.pacing`."""

_BATCH, _LARGEST = 8192, 16384
"""Tokens of a prefill batch: one of many, and upstream's default of --max-prefill-tokens."""


@dataclass(frozen=True, slots=True)
class PdmuxChoice:
    """A config for a pool.

    Attributes:
        config: one division, whatever decodes.
        prefill, decode: seconds that the pool's prefill and decode take on their parts, beside each other.
    """

    config: PdmuxConfig
    prefill: float
    decode: float


def choose_config(times: PdmuxTimes, pool: PoolWork, *, kv_capacity: float, longest: int) -> PdmuxChoice:
    """Find the division that ends a pool first, prefill and decode going on beside each other.

    What is left of one when the other ends has the whole GPU. Every step is the pool's mean step, with a
    cache as full as it is on average.

    Args:
        longest: output tokens of the longest answer, each of which takes a step.
    """
    steps = max(longest, math.ceil(pool.kv_held / (_FILL * kv_capacity)), 1)
    batches = max(pool.prefill_tokens / _BATCH, 1.0)
    prefill = StepWork(
        prefill_tokens=pool.prefill_tokens / batches,
        prefill_pairs=pool.prefill_pairs / batches,
        finished_prefills=pool.requests / batches,
    )
    decode = StepWork(decode_rows=pool.decode_rows / steps, kv_tokens=pool.kv_tokens / steps)
    least, multiple = sm_step(times.times.hardware)
    alone = batches * _alone(times, prefill), steps * (_alone(times, decode) + times.turn)
    best, found = math.inf, None
    for sms in range(least, times.total - least + 1, multiple):
        loads = times.load(prefill, times.total - sms), times.load(decode, sms)
        slow = float(times.slowdown(*loads))
        ends = batches * float(loads[0].seconds) * slow, steps * (float(loads[1].seconds) * slow + times.turn)
        both = min(ends)
        seconds = both + sum(a * (1.0 - both / end) for a, end in zip(alone, ends, strict=True) if end > 0)
        if seconds < best:
            best, found = seconds, (sms, *ends)
    assert found is not None
    sms, prefill_seconds, decode_seconds = found
    division = Division(times.total - sms, sms, 1)
    # A step that outlasts the layers launched beside it leaves prefill idle; a launch that outlasts the step
    # holds the next one up. So: as many layers as are launched in half of a step.
    layers = max(min(int(0.5 * decode_seconds / steps / times.launch), times.times.shape.layers), 1)
    config = PdmuxConfig((division,), layers * _LARGEST)
    return PdmuxChoice(config, prefill_seconds, decode_seconds)


def _alone(times: PdmuxTimes, work: StepWork) -> float:
    return float(times.load(work, times.total).seconds)

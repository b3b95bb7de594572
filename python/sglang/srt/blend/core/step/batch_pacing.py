"""How much one prefill batch should carry where it passes all layers beside decode steps (PD multiplexing).

Nobody joins such a batch until it has passed its last layer, and it is seen to have ended only when a decode
step ends. So a batch that ends in the middle of a step leaves its part of the GPU idle until that step is
done, and what has finished decoding meanwhile is not replaced.
"""

from __future__ import annotations

import numpy as np

from sglang.srt.blend.core.cost.pdmux import PdmuxConfig, PdmuxTimes
from sglang.srt.blend.core.cost.step_time import StepWork
from sglang.srt.blend.core.step.pacing import LATE, Quota, WorkLeft

_LARGEST = 16384
"""Tokens of a batch that are considered; upstream's default of --max-prefill-tokens."""

_ENOUGH = 1.03
"""Seconds per token, compared with the best batch, from which on a larger batch is not worth its wait."""


class BatchPacer:
    """Chooses prefill batches that last a whole number of the decode steps beside which they run.

    How fast prefill goes is not for the pacer to say: that is the division of the GPU, which
    `pdmux_choice.choose_config` fits to the pool. A batch is the smallest that is about as fast per token as
    larger ones, and from there the largest that ends just before a decode step does.

    Args:
        times: of work on parts of the GPU.
        config: the divisions.
        kv_capacity: tokens.

    Attributes:
        overlapped: prefill hides behind decode steps.
    """

    overlapped = True

    def __init__(self, times: PdmuxTimes, config: PdmuxConfig, *, kv_capacity: float) -> None:
        self._times, self._config, self._capacity = times, config, kv_capacity
        tokens = np.arange(128, _LARGEST + 1, 128, dtype=np.float64)
        self._batches = StepWork(prefill_tokens=tokens, finished_prefills=1)
        self._tokens = tokens

    def quota(self, left: WorkLeft, *, decode_rows: int, kv_tokens: float) -> Quota:
        """Prefill for a batch that begins beside `decode_rows` requests with `kv_tokens` of KV."""
        division, times = self._config.division(max(decode_rows, 1)), self._times
        prefill = times.load(self._batches, division.prefill)
        decode = times.load(StepWork(decode_rows=decode_rows, kv_tokens=kv_tokens), division.decode)
        slow = times.slowdown(prefill, decode)
        lasts = prefill.seconds * slow
        turn = float(decode.seconds * slow[-1]) + times.turn
        rate = lasts / self._tokens
        least = int(np.argmax(rate <= _ENOUGH * rate.min()))
        turns = max(float(np.ceil(lasts[least] / turn)), 1.0)
        fitting = np.flatnonzero(lasts <= turns * turn)
        tokens = self._tokens[max(int(fitting.max(initial=0)), least)]
        return Quota(int(tokens), left.density, late=LATE * left.steps(self._capacity))

"""How much one prefill batch should carry where it passes all layers beside decode steps (PD multiplexing).

Nobody joins such a batch until it has passed its last layer, and it is seen to have ended only when a decode
step ends. So a batch that ends in the middle of a step leaves its part of the GPU idle until that step is
done, and what has finished decoding meanwhile is not replaced.
"""

from __future__ import annotations

import numpy as np

from sglang.srt.blend.core.cost.pdmux import PdmuxConfig, PdmuxTimes
from sglang.srt.blend.core.cost.step_time import StepWork
from sglang.srt.blend.core.step.pacing import Quota, WorkLeft

_LARGEST = 16384
"""Tokens of a batch that are considered; upstream's default of --max-prefill-tokens."""

_ENOUGH = 1.005
"""Seconds per token, compared with the best batch, from which on a larger batch is not worth its wait."""

_BEYOND = 1.25
"""Times its quota that a batch may come to, as its last prompt goes whole; the next tile may be dear."""


class BatchPacer:
    """Chooses prefill batches that last a whole number of the decode steps beside which they run.

    How fast prefill goes is not for the pacer to say: that is the division of the GPU, which
    `pdmux_choice.choose_config` fits to the pool. A batch is the smallest that is about as fast per token as
    larger ones, wherever its last prompt makes it end, half a step of idling included; and from there the
    largest that ends just before a step does.

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
        self._reached = (tokens >= tokens[:, None]) & (tokens <= _BEYOND * tokens[:, None])

    def quota(self, left: WorkLeft, *, decode_rows: int, kv_tokens: float) -> Quota:
        """Prefill for a batch that begins beside `decode_rows` requests with `kv_tokens` of KV."""
        division, times = self._config.division(max(decode_rows, 1)), self._times
        prefill = times.load(self._batches, division.prefill)
        decode = times.load(StepWork(decode_rows=decode_rows, kv_tokens=kv_tokens), division.decode)
        slow = times.slowdown(prefill, decode)
        lasts = prefill.seconds * slow
        turn = float(decode.seconds * slow[-1]) + times.turn
        # A prompt makes the batch longer than was asked, so on average it ends in the middle of a step.
        rate = np.where(self._reached, (lasts + 0.5 * turn) / self._tokens, 0.0).max(axis=1)
        least = int(np.argmax(rate <= _ENOUGH * rate.min()))
        turns = max(float(np.ceil(lasts[least] / turn)), 1.0)
        fitting = np.flatnonzero(lasts <= turns * turn)
        tokens = self._tokens[max(int(fitting.max(initial=0)), least)]
        return Quota(int(tokens), left.density, late=left.late(self._capacity))

"""How many rows a step should carry, so that compute and memory traffic run out together.

The partition of paper 5.3 holds in the steady state of an endless pool. A pool that ends has a tail: its
longest answers take a pass per token however little else there is to do, and a compute side that was used
up early leaves them nothing to hide behind. So Algorithm 3's quota, C = N p / d tokens per step, is
replaced here by one that looks at the work that is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang.srt.blend.core.gemm_profile import TILE_ROWS
from sglang.srt.blend.core.step_time import StepTimeModel

# Largest pass that is considered, rows.
_MAX_ROWS = 16384
# Share of the KV capacity that running requests fill on average: they grow, so they begin with less.
_FILL = 0.7
# Share of the steps left from which on an answer has to begin.
_LATE = 0.9


@dataclass(frozen=True, slots=True)
class WorkLeft:
    """What running and waiting requests will still do, as far as estimates tell.

    Attributes:
        rows: prompt tokens to compute and output tokens to decode.
        kv_reads: KV tokens that decoding will read, summed over steps.
        longest: output tokens of the longest answer to come; it takes a step for each.
        density: Comp / Mem of all of it.
    """

    rows: float
    kv_reads: float
    longest: float
    density: float

    def steps(self, kv_capacity: float) -> float:
        """Passes that this takes at least, 1 or more."""
        return max(self.longest, self.kv_reads / (_FILL * kv_capacity), 1.0)


@dataclass(frozen=True, slots=True)
class Quota:
    """What one step should prefill.

    Attributes:
        tokens: prompt tokens; 0 is a step without prefill.
        density: of the work left. Requests of less density make the reads to hide behind, so the quota does
            not hold them back.
        late: output tokens; answers of that many or more would end last if they waited, so it does not hold
            them back either.
    """

    tokens: int
    density: float
    late: float


class Pacer:
    """Turns what is left into prefill tokens for the next step.

    An `overlapped` engine hides compute behind memory traffic. A step's *free rows* are those whose compute
    takes as long as reading the weights and the KV of its decode rows. If the rows left are fewer than the
    free rows of all steps left, each step takes its free rows and nothing of the rest is ever exposed;
    otherwise each step takes the same multiple of them, for what exceeds them costs the same anywhere.

    A `mixed` engine hides nothing but the weights: rows are spread evenly, so that no step reads the
    weights for a few decode rows alone.

    Args:
        times: step times of the model on its hardware.
        engine: "mixed" or "overlapped".
        kv_capacity: tokens.

    Attributes:
        overlapped: whether compute hides behind memory traffic.

    Raises:
        ValueError: an engine whose passes do not hold prefill and decode together cannot be paced.
    """

    def __init__(self, times: StepTimeModel, engine: str, *, kv_capacity: float) -> None:
        if engine not in ("mixed", "overlapped"):
            raise ValueError(f"engine {engine!r}: only mixed and overlapped passes can be paced")
        self._times = times
        self.overlapped = engine == "overlapped"
        self._capacity = kv_capacity
        # Kernels work on whole tiles (paper A.2: multiples of 128 tokens) where they were measured to.
        self._tile = TILE_ROWS if times.profile is not None else 1
        self._rows = np.arange(0, _MAX_ROWS + 1, TILE_ROWS, dtype=np.float64)
        compute = times.gemm(self._rows, 1) + times.other(self._rows) + times.all_reduce(self._rows)
        # Strictly increasing, so that it can be inverted: measured times have flat places.
        self._compute = np.maximum.accumulate(compute) + 1e-9 * np.arange(len(compute))
        self._weights = float(times.weight_read)
        self._owed = 0.0

    def free_rows(self, kv_tokens: float) -> float:
        """Rows whose compute is hidden by a step's reads: the weights and `kv_tokens` of KV cache."""
        memory = self._weights + float(self._times.decode_attention(kv_tokens))
        return float(np.interp(memory, self._compute, self._rows))

    def quota(self, left: WorkLeft, *, decode_rows: int, kv_tokens: float) -> Quota:
        """Prefill for a step that decodes `decode_rows` requests with `kv_tokens` of KV.

        Whole tiles, decode rows included; the remainder is owed to the next step.
        """
        steps = left.steps(self._capacity)
        if self.overlapped:
            fair = left.rows / (steps * max(self.free_rows(left.kv_reads / steps), 1.0))
            rows = max(fair, 1.0) * self.free_rows(kv_tokens)
            # What is hidden anyway need not be made up for, unless it is never a whole tile.
            owed = self._owed if fair > 1.0 or rows < self._tile else 0.0
        else:
            rows, owed = left.rows / steps, self._owed
        wanted = min(rows + owed, _MAX_ROWS)
        whole = wanted // self._tile * self._tile
        prefill = whole - decode_rows
        # A step cannot decode less; what it does beyond its rows is not made up for by a later pause.
        self._owed = min(max(wanted - max(whole, decode_rows), 0.0), float(self._tile))
        return Quota(max(int(prefill), 0), left.density, late=_LATE * steps)

"""How many rows a step should carry, so that compute and memory traffic run out together.

The partition of paper 5.3 holds in the steady state of an endless pool. A pool that ends has a tail: its
longest answers take a pass per token however little else there is to do, and a compute side that was used
up early leaves them nothing to hide behind. So Algorithm 3's quota, C = N p / d tokens per step, is
replaced here by one that looks at the work that is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.gemm_profile import TILE_ROWS
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.core.step.fill import EXPECTED

# Largest pass that is considered, rows.
_MAX_ROWS = 16384
# Share of the KV capacity that the compute side leaves to the memory side however little time it has.
_LEAST_MEMORY = 0.05
LATE = 0.9
"""Share of the steps left from which on an answer has to begin."""


@dataclass(frozen=True, slots=True)
class Demand:
    """KV that requests will hold.

    Attributes:
        share: KV tokens that they count for, summed; see `share_tokens`.
        token_steps: the same times the steps that each of them takes, summed.
    """

    share: float = 0.0
    token_steps: float = 0.0

    @property
    def steps(self) -> float:
        """Steps that a request takes on average, each counted by its share; 0 where there is none.

        >>> Demand(share=100.0, token_steps=2500.0).steps
        25.0
        """
        return self.token_steps / self.share if self.share > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class WorkLeft:
    """What running and waiting requests will still do, as far as estimates tell.

    Attributes:
        rows: prompt tokens to compute and output tokens to decode.
        kv_reads: KV tokens that decoding will read, summed over steps.
        longest: steps that the longest answer to come takes.
        density: Comp / Mem of all of it.
        compute: of those that wait and are at least as dense as that.
        kv_held: KV tokens that they will hold, summed over steps; a shared prefix, which all its requests
            read, is held once. None is as many as are read.
        accept_length: output tokens that a step yields for each request.
        fill: share of the KV capacity that requests hold on average; see `Fill`.
        stream: whether others keep coming, so that the longest answer is not the end.
    """

    rows: float
    kv_reads: float
    longest: float
    density: float
    compute: Demand = Demand()
    kv_held: float | None = None
    accept_length: float = 1.0
    fill: float = EXPECTED
    stream: bool = False

    def full_steps(self, kv_capacity: float) -> float:
        """Passes that it takes to hold all KV as long as it is read, with a cache as full as on average."""
        return (self.kv_reads if self.kv_held is None else self.kv_held) / (self.fill * kv_capacity)

    def steps(self, kv_capacity: float) -> float:
        """Passes that this takes at least, 1 or more."""
        return max(0.0 if self.stream else self.longest, self.full_steps(kv_capacity), 1.0)

    def late(self, kv_capacity: float) -> float:
        """Output tokens from which on an answer would end last if it waited."""
        return LATE * self.steps(kv_capacity) * self.accept_length

    def prefill_steps(self, kv_capacity: float) -> float:
        """Passes among which to spread prefill, 1 or more: its last ones must end before the last pass."""
        last = 0.0 if self.stream else self.compute.steps
        return max(self.steps(kv_capacity) - last, 1.0)

    def compute_reserve(self, kv_capacity: float, used: float) -> float:
        """KV tokens that the compute side goes on holding if it is prefilled at an even pace.

        Args:
            used: what it holds now; with all that waits of it, it never holds more than both.
        """
        even = self.compute.token_steps / self.prefill_steps(kv_capacity)
        return min(even, self.compute.share + used, (1.0 - _LEAST_MEMORY) * kv_capacity)


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


class Pace(Protocol):
    """What decides how much steps prefill.

    Attributes:
        overlapped: whether prefill hides behind memory traffic.
    """

    overlapped: bool

    def quota(self, left: WorkLeft, *, decode_rows: int, kv_tokens: float) -> Quota:
        """Prefill for a step, or for a batch that passes all layers, beside so much decoding."""


@njit(cache=True)
def _lower_hull(x, y):  # type: ignore[no-untyped-def]
    """Indices of the points below which no mixture of two others lies; x increases."""
    hull = np.empty(len(x), np.int64)
    n = 0
    for i in range(len(x)):
        while n > 1:
            a, b = hull[n - 2], hull[n - 1]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            n -= 1
        hull[n] = i
        n += 1
    return hull[:n]


class Pacer:
    """Turns what is left into prefill tokens for the next step.

    An `overlapped` engine hides compute behind memory traffic. A step's *free rows* are those whose compute
    takes as long as reading the weights and the KV of its decode rows. If the rows left are fewer than the
    free rows of all steps left, each step takes its free rows and nothing of the rest is ever exposed;
    otherwise each step takes the same multiple of them, for what exceeds them costs the same anywhere.

    A `mixed` engine hides nothing but the weights: rows are spread evenly, so that no step reads the
    weights for a few decode rows alone.

    Kernels work on tiles, and some numbers of tiles are dear for what they do. A step gets one of the sizes
    that no mixture of steps of other sizes beats, and a tile that its decode rows begin is filled: the rest
    of it costs nothing.

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
        # Paper A.2: multiples of 128 tokens, where kernels were measured to work on them.
        self._tile = times.tile
        self._rows = np.arange(0, _MAX_ROWS + 1, TILE_ROWS, dtype=np.float64)
        compute = times.gemm(self._rows, 1) + times.other(self._rows) + times.all_reduce(self._rows)
        # Strictly increasing, so that it can be inverted: measured times have flat places.
        self._compute = np.maximum.accumulate(compute) + 1e-9 * np.arange(len(compute))
        self._weights = float(times.weight_read)
        self._owed = 0.0

    def free_rows(self, kv_tokens: float) -> float:
        """Rows whose compute is hidden by a step's reads: the weights and `kv_tokens` of KV cache."""
        return float(np.interp(self._memory(kv_tokens), self._compute, self._rows))

    def _memory(self, kv_tokens: float) -> float:
        return self._weights + float(self._times.decode_attention(kv_tokens))

    def quota(self, left: WorkLeft, *, decode_rows: int, kv_tokens: float) -> Quota:
        """Prefill for a step that computes `decode_rows` to decode requests with `kv_tokens` of KV.

        Whole tiles, decode rows included; the remainder is owed to the next step.
        """
        steps, prefill_steps = left.steps(self._capacity), left.prefill_steps(self._capacity)
        if self.overlapped:
            fair = left.rows / (prefill_steps * max(self.free_rows(left.kv_reads / steps), 1.0))
            rows = max(fair, 1.0) * self.free_rows(kv_tokens)
            owed = self._owed if fair > 1.0 else 0.0  # what is hidden anyway need not be made up for
        else:
            rows, owed = left.rows / prefill_steps, self._owed
        wanted = min(rows + owed, _MAX_ROWS)
        whole = wanted
        if self._tile > 1:
            sizes = self.sizes(kv_tokens)
            begun = -(-decode_rows // self._tile) * self._tile
            whole = max(float(sizes[np.searchsorted(sizes, wanted, side="right") - 1]), float(begun))
        # A step cannot decode less; what it does beyond its rows is not made up for by a later pause.
        self._owed = max(wanted - max(whole, decode_rows), 0.0)
        return Quota(max(int(whole) - decode_rows, 0), left.density, late=left.late(self._capacity))

    def sizes(self, kv_tokens: float) -> NDArray[np.float64]:
        """Rows of which a step that reads so many KV tokens should have one number; increasing from 0."""
        seconds = self._compute
        if self.overlapped:
            seconds = np.maximum(seconds, self._memory(kv_tokens))
        return np.append(0.0, self._rows[1:][_lower_hull(self._rows[1:], seconds[1:])])

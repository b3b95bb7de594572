"""Mix traces until density and sharing are as wanted (paper 6.1).

The paper first chooses the ratio of the compute trace to OpenVid for the density, then adds MMLU for the
sharing. Adding MMLU moves the density again, so both are solved together here: three unknown counts,
and three conditions (density, sharing, number of requests) that are linear in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from benchmark.workloads.traces import TRACES, TraceSpec, make_trace
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.pool.workload import Workload, concatenate

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MixTarget:
    """What a mix should be.

    Attributes:
        density: Comp / Mem with all possible sharing.
        sharing: share of prompt tokens that a depth-first walk does not compute.
    """

    density: float
    sharing: float


class ImpossibleMix(ValueError):
    """No mix of the traces has the density and the sharing that are wanted."""


PAPER_TRACES = (MixTarget(1.4, 0.35), MixTarget(0.9, 0.35), MixTarget(1.4, 0.05), MixTarget(0.9, 0.05))
"""The four headline traces, #1 to #4."""


def synthesise(
    target: MixTarget,
    requests: int,
    cost: CostModel,
    *,
    compute: str = "burstgpt",
    memory: str = "openvid",
    sharing: str = "mmlu",
    seed: int = 0,
    specs: Mapping[str, TraceSpec] = TRACES,
) -> Workload:
    """A shuffled mix of three traces that hits the target.

    Requests of the memory trace are few and long, so their number is rounded first and the others follow;
    the mix has about `requests` requests (the fewer, the less exactly).

    Args:
        compute, memory, sharing: names in `specs`.

    Raises:
        ImpossibleMix: no mix of these traces has that density and sharing.
    """
    names = (compute, memory, sharing)
    make = partial(make_trace, seed=seed, specs=specs)
    before = averages = np.array([_averages(make(name, 2000), cost) for name in names])
    memory_requests = max(1, round(requests * float(_shares(averages, target, names)[1])))
    best: tuple[float, Workload] | None = None
    for _ in range(6):  # averages change a little with the number of requests: measure and solve again
        try:
            counts = _counts(averages, target, memory_requests, names)
        except ImpossibleMix:
            if best is None:
                raise
            averages = (averages + before) / 2  # so few requests that their averages jump: go half as far
            continue
        parts = [make(name, int(count)) for name, count in zip(names, counts, strict=True)]
        mix = concatenate([part for part in parts if len(part)])
        reached = mix.statistics(cost)
        error = abs(reached.density / target.density - 1) + abs(reached.sharing - target.sharing)
        if best is None or error < best[0]:
            best = error, mix
        if error < 0.005:
            break
        before = averages
        averages = np.array(
            [
                _averages(part, cost) if len(part) else old
                for part, old in zip(parts, averages.tolist(), strict=True)
            ]
        )
    assert best is not None
    mix = best[1]
    return mix.take(np.random.default_rng([seed, 17]).permutation(len(mix)))


def _averages(trace: Workload, cost: CostModel) -> tuple[float, ...]:
    """Per request: Comp less what sharing saves, Mem, prompt tokens, shared tokens."""
    total = trace.statistics(cost)
    sums = (total.comp - total.saved, total.mem, total.prompt_tokens, total.shared_tokens)
    return tuple(value / len(trace) for value in sums)


def _shares(averages: Floats, target: MixTarget, names: tuple[str, ...]) -> Floats:
    """Share of each trace among the requests; they sum to 1."""
    comp, mem, prompt, shared = averages.T
    conditions = np.array(
        [comp - target.density * mem, shared - target.sharing * prompt, np.ones(len(names))]
    )
    shares = np.linalg.solve(conditions, [0.0, 0.0, 1.0])
    if np.any(shares < 0):
        wanted = ", ".join(f"{name} {share:.4f}" for name, share in zip(names, shares, strict=True))
        raise ImpossibleMix(
            f"density {target.density} with sharing {target.sharing}: no mix of these traces reaches it "
            f"(shares would be {wanted}); choose other traces or targets"
        )
    return np.asarray(shares)


def _counts(averages: Floats, target: MixTarget, memory_requests: int, names: tuple[str, ...]) -> Ints:
    """Requests of each trace, given those of the memory trace."""
    shares = _shares(averages, target, names)
    counts = np.rint(shares * memory_requests / shares[1]).astype(np.int64)
    counts[1] = memory_requests
    return counts

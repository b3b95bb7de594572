"""Workloads for a small model on a CPU: the paper's traces and others, lengths scaled down.

All are synthetic (`benchmark.workloads`): random tokens, log-normal lengths around published statistics. What
is scaled is stated with each. Answers of a trace with `known` lengths are announced to the scheduler, as a
video's are; all others are hidden from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from benchmark.workloads import PAPER_TRACES, MixTarget, make_trace, synthesise
from benchmark.workloads.lengths import LengthDistribution
from benchmark.workloads.traces import TraceSpec

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.pool.workload import Workload

MEMORY_DENSITY = 0.45
"""Of the memory-intensive trace: half of the lowest target, so that a mix can reach it."""

LONGEST_MEAN = 768
"""Mean answer of the memory-intensive trace at most, tokens: a step per token."""

SPECS: dict[str, TraceSpec] = {
    # As `benchmark.workloads.traces`, the longest tenth cut off.
    "burstgpt": TraceSpec(
        LengthDistribution(244, 260, 8, 1024), LengthDistribution(27, 40, 1, 256), 5, max_new_tokens=256
    ),
    # Prompts as there. The mean answer is a placeholder: `memory_trace` fits it to the machine.
    "openvid": TraceSpec(
        LengthDistribution(121, 40, 16, 256), LengthDistribution(LONGEST_MEAN), 0, 0, known=True
    ),
    # As there, with fewer subjects (`subjects`).
    "mmlu": TraceSpec(LengthDistribution(804, 60, 700, 1024), LengthDistribution(2), 691, max_new_tokens=8),
    # Summaries of papers, about 7,000 tokens in and 200 out (Sarathi-Serve, arXiv 2403.02310), both divided
    # by 8 and 4.
    "arxiv": TraceSpec(
        LengthDistribution(880, 450, 128, 2048), LengthDistribution(52, 50, 4, 256), 24, max_new_tokens=256
    ),
    # Code completion, as `azure` there, prompts divided by 4.
    "azure-code": TraceSpec(
        LengthDistribution(627, 600, 32, 2048), LengthDistribution(23, 49, 1, 256), 25, max_new_tokens=256
    ),
    # Few-shot classification: 16 tasks, instruction and examples shared, a label as the answer.
    "classification": TraceSpec(
        LengthDistribution(560, 30, 505, 700),
        LengthDistribution(4, 2, 1, 8),
        500,
        max_new_tokens=8,
        groups=16,
    ),
}

REQUESTS = {
    "trace1": 220,
    "trace2": 160,
    "trace3": 220,
    "trace4": 160,
    "arxiv": 60,
    "azure-code": 110,
    "classification": 320,
}
"""Names of the workloads, and their requests at scale 1."""

FEWEST = 24
"""Requests at any scale; of fewer no mix can be made."""

FOUR_TRACES = tuple(name for name in REQUESTS if name.startswith("trace"))


@dataclass(frozen=True, slots=True)
class Prepared:
    """A workload in order of arrival, and what it is.

    Attributes:
        density, sharing: reached, by the planner's own prefix tree.
        target: of a mix; None for single traces.
    """

    name: str
    workload: Workload
    density: float
    sharing: float
    target: MixTarget | None

    def summary(self, kv_capacity: int) -> dict[str, object]:
        """For the report; `demand` is the KV of all requests together by the capacity."""
        pool = self.workload
        return {
            "requests": len(pool),
            "input_tokens": len(pool.tokens),
            "output_tokens": int(pool.output.sum()),
            "longest_answer": int(pool.output.max()),
            "known_lengths": round(float(pool.known.mean()), 3),
            "density": round(self.density, 3),
            "sharing": round(self.sharing, 3),
            "target": None if self.target is None else [self.target.density, self.target.sharing],
            "demand": round(pool.total_tokens / kv_capacity, 1),
        }


def prepare(
    name: str, cost: CostModel, *, scale: float = 1.0, length_scale: float = 1.0, seed: int = 0
) -> Prepared:
    """Build a workload for the model and machine of `cost`, in random order of arrival.

    Args:
        scale: multiplies the number of requests.
        length_scale: multiplies all lengths. With as much less KV cache the same requests run together, for
            as many fewer steps.

    Raises:
        ValueError: unknown name, or a mix that this model and machine do not allow.
    """
    if name not in REQUESTS:
        raise ValueError(f"workload {name!r}: unknown; choose one of {', '.join(REQUESTS)}")
    requests = max(FEWEST, round(REQUESTS[name] * scale))
    target = None
    specs = {source: with_lengths(spec, length_scale) for source, spec in SPECS.items()}
    if name in FOUR_TRACES:
        paper = PAPER_TRACES[FOUR_TRACES.index(name)]
        videos = memory_trace(cost, specs["openvid"])
        target = reachable(paper, videos, cost)
        specs |= {"openvid": videos, "mmlu": replace(specs["mmlu"], groups=subjects(paper, scale))}
        pool = synthesise(target, requests, cost, seed=seed, specs=specs)
    else:
        pool = make_trace(name, requests, seed=seed, specs=specs)
        pool = pool.take(np.random.default_rng([seed, 17]).permutation(len(pool)))
    reached = pool.statistics(cost)
    return Prepared(name, pool, reached.density, reached.sharing, target)


def with_lengths(spec: TraceSpec, factor: float) -> TraceSpec:
    """The trace with all lengths multiplied by `factor`; none falls to zero."""

    def scaled(lengths: LengthDistribution) -> LengthDistribution:
        low, high = (max(1, round(bound * factor)) for bound in (lengths.low, lengths.high))
        return replace(
            lengths,
            mean=max(1.0, lengths.mean * factor),
            deviation=lengths.deviation * factor,
            low=low,
            high=high,
        )

    return replace(
        spec,
        prompt=scaled(spec.prompt),
        output=scaled(spec.output),
        shared=round(spec.shared * factor),
        max_new_tokens=max(min(1, spec.max_new_tokens), round(spec.max_new_tokens * factor)),
    )


def memory_trace(cost: CostModel, spec: TraceSpec) -> TraceSpec:
    """The OpenVid-like trace with the shortest answers that make it memory-intensive on this machine.

    Frames shrink with the answers; the spread stays the paper trace's.

    Args:
        spec: its prompts, and its mean answer as the longest to try.
    """
    means = np.arange(64, int(spec.output.mean) + 1, 16)
    prompt = spec.prompt
    density = cost.density(prompt.mean, means)
    mean = float(means[min(int(np.sum(density > MEMORY_DENSITY)), len(means) - 1)])
    output = LengthDistribution(mean, 0.4 * mean, low=round(mean / 4), high=round(1.5 * mean))
    return replace(spec, output=output)


def subjects(target: MixTarget, scale: float) -> int:
    """MMLU's shared prefixes: 57 for the paper's thousands of questions, here about three questions each.

    At scale 1 and 35% sharing they are more than a KV cache of 8K tokens holds.
    """
    return max(1, round((12 if target.sharing > 0.2 else 1) * scale))


def reachable(target: MixTarget, memory: TraceSpec, cost: CostModel) -> MixTarget:
    """The paper's target, or one scaled up where even long answers are compute-intensive.

    A CPU without matrix units has so little compute for its bandwidth that density 1 would take answers of
    many thousand tokens. The four traces then keep their ratios to each other.
    """
    density = float(cost.density(memory.prompt.mean, memory.output.mean))
    return replace(target, density=target.density * max(1.0, density / MEMORY_DENSITY))

"""Workloads for measurements: synthetic traces with the paper's statistics, their mixes, and loaders.

All give a `sglang.srt.blend.core.pool.workload.Workload`; density and sharing are computed there, by the
planner's own prefix tree.
"""

from benchmark.workloads.synthesis import PAPER_TRACES, ImpossibleMix, MixTarget, synthesise
from benchmark.workloads.traces import TRACES, make_trace

__all__ = ["PAPER_TRACES", "TRACES", "ImpossibleMix", "MixTarget", "make_trace", "synthesise"]

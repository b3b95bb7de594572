"""Synthetic stand-ins for the paper's six traces.

Only statistics are published, so everything here is synthetic: mean lengths from BlendServe Figure 2
(ShareGPT from NanoFlow's table, same group), sharing ratios from its Table 4, random token ids. Spreads
are assumptions unless a source is named. One system prompt per trace, which all its requests begin with,
gives the trace its sharing; MMLU shares one few-shot prefix per subject.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from benchmark.workloads.lengths import LengthDistribution

from sglang.srt.blend.core.pool.workload import Workload

VOCABULARY = 32_000
"""Token ids are drawn from 1000 to here: valid for every model of the paper, away from special tokens."""

FRAME_TOKENS = 256


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """Statistics of a trace.

    Attributes:
        prompt, output: lengths in tokens; the prompt includes shared prefixes.
        shared: tokens that requests of one group begin with.
        groups: distinct shared prefixes.
        known: output lengths are certain beforehand (a video has so many frames).
        max_new_tokens: the cap that users of such a service set.
    """

    prompt: LengthDistribution
    output: LengthDistribution
    shared: int
    max_new_tokens: int
    groups: int = 1
    known: bool = False


TRACES: dict[str, TraceSpec] = {
    # Mean and deviation: NanoFlow (arXiv 2408.12757), its table of datasets.
    "sharegpt": TraceSpec(
        LengthDistribution(246, 547, 8, 8192), LengthDistribution(322, 244, 1, 2048), 5, 2048
    ),
    "wildchat": TraceSpec(
        LengthDistribution(496, 900, 96, 8192), LengthDistribution(510, 520, 1, 4096), 94, 4096
    ),
    # Coefficients of variation (0.96 and 2.1) of the public Azure code-completion trace of 2023.
    "azure": TraceSpec(
        LengthDistribution(2508, 2400, 32, 8192), LengthDistribution(23, 49, 1, 1024), 25, 1024
    ),
    "burstgpt": TraceSpec(
        LengthDistribution(244, 260, 8, 4096), LengthDistribution(27, 40, 1, 1024), 5, 1024
    ),
    # Published mean 43,726 output tokens; normalised to 16K as the paper does.
    "openvid": TraceSpec(
        LengthDistribution(121, 40, 16, 512),
        LengthDistribution(16_384, 6_500, 16 * FRAME_TOKENS, 160 * FRAME_TOKENS, FRAME_TOKENS),
        0,
        160 * FRAME_TOKENS,
        known=True,
    ),
    # 57 subjects; 0.86 of 804 prompt tokens are the subject's instruction and examples.
    "mmlu": TraceSpec(
        LengthDistribution(804, 60, 700, 2048), LengthDistribution(2), 691, max_new_tokens=8, groups=57
    ),
}


def with_video_tokens(mean: int) -> dict[str, TraceSpec]:
    """The traces, with OpenVid's answers normalised to another mean.

    Shorter ones allow a small trace that is large beside its longest answer.
    """
    spec = TRACES["openvid"]
    scale = mean / spec.output.mean
    output = LengthDistribution(
        mean,
        spec.output.deviation * scale,
        int(spec.output.low * scale),
        int(spec.output.high * scale),
        max(int(spec.output.unit * scale), 1),
    )
    return {**TRACES, "openvid": replace(spec, output=output, max_new_tokens=output.high)}


def make_trace(
    name: str, requests: int, *, seed: int = 0, specs: Mapping[str, TraceSpec] = TRACES
) -> Workload:
    """A synthetic trace; equal arguments give equal tokens.

    Args:
        specs: where `name` is looked up.

    Raises:
        ValueError: an unknown name.
    """
    if name not in specs:
        raise ValueError(f"trace {name!r}: unknown; choose one of {', '.join(specs)}")
    spec = specs[name]
    # Names seed too: traces differ, and share no system prompt, whatever else is mixed with them.
    rng = np.random.default_rng([seed, list(specs).index(name)])
    prompt = spec.prompt.draw(requests, rng)
    output = spec.output.draw(requests, rng)
    prefixes = rng.integers(1000, VOCABULARY, (spec.groups, spec.shared), dtype=np.int32)
    group = rng.integers(0, spec.groups, requests)
    offsets = np.concatenate([[0], np.cumsum(prompt)])
    tokens = rng.integers(1000, VOCABULARY, int(offsets[-1]), dtype=np.int32)
    if spec.shared:
        # Prompts shorter than the shared prefix do not exist: `low` is above `shared` in every spec.
        places = offsets[:-1, None] + np.arange(spec.shared)
        tokens[places] = prefixes[group]
    cap = np.full(requests, spec.max_new_tokens)
    return Workload(
        tokens=tokens,
        offsets=offsets,
        output=output.astype(np.int32),
        max_new_tokens=(output if spec.known else cap).astype(np.int32),
        known=np.full(requests, spec.known),
        source=np.zeros(requests, np.int16),
        names=(name,),
    )

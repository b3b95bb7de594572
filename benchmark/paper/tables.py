"""Which simulations make up each table of the evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

from benchmark.paper.compare import CHUNKS, IN_LINE, PDMUX, TOLD, TOLD_FOR_GOOD, VARIANTS, Run
from benchmark.paper.models import MODELS
from benchmark.workloads.jobs import JOBS

FULL, SCALED, QUICK, GRID, TOLD_REQUESTS, LPM = 44_000, 10_000, 7500, 5000, 2500, 1000
"""Requests, about: a mix comes out up to a tenth smaller."""

SCALED_VIDEO_TOKENS, QUICK_VIDEO_TOKENS, GRID_VIDEO_TOKENS = 4096, 3072, 2048
SHORTEST_VIDEO_TOKENS = GRID_VIDEO_TOKENS

_ENGINES = ("alternating", "mixed", "overlapped")


def traces() -> list[Run]:
    """The four traces, scaled down, under every order that is compared; see also `lpm` and `headline`."""
    schedules = [
        *product(("dfs", "random", "fcfs"), ("alternating", "mixed")),
        ("dfs", "overlapped"),
        ("random", "overlapped"),
        *product(("lof", "lpm", "batchllm"), ("mixed",)),
        *(("blend", engine) for engine in _ENGINES),
    ]
    return [
        Run(trace, *schedule, SCALED, video_tokens=SCALED_VIDEO_TOKENS)
        for trace in (1, 2, 3, 4)
        for schedule in schedules
    ]


def headline() -> list[Run]:
    """The four traces at full size: blend and depth-first order where passes hold prefill and decode."""
    schedules = product(("dfs", "blend"), ("mixed", "overlapped"))
    return [Run(trace, *schedule, FULL) for schedule in schedules for trace in (1, 2, 3, 4)]


def _scaled() -> list[Run]:
    """`headline` with a quarter of the requests, and videos a quarter as long."""
    return [replace(run, requests=SCALED, video_tokens=SCALED_VIDEO_TOKENS) for run in headline()]


def quick() -> list[Run]:
    """`headline` scaled down to minutes."""
    return [replace(run, requests=QUICK, video_tokens=QUICK_VIDEO_TOKENS) for run in headline()]


def lpm() -> list[Run]:
    """Longest prefix match with and without upstream's queue limit: small, it walks the queue each step."""
    policies = ("dfs", "lpm", "lpm-unlimited", "blend")
    return [
        replace(run, policy=policy, requests=LPM)
        for run in _scaled()
        if run.policy == "dfs" and run.engine == "mixed"
        for policy in policies
    ]


def _grid(
    compute: str,
    densities: list[float],
    sharings: list[float],
    requests: int = SCALED,
    video_tokens: int = SCALED_VIDEO_TOKENS,
) -> list[Run]:
    points = product(densities, sharings, ("dfs", "blend"))
    return [
        Run(
            0,
            policy,
            "overlapped",
            requests,
            compute=compute,
            video_tokens=video_tokens,
            density=round(density, 2),
            sharing=round(sharing, 2),
        )
        for density, sharing, policy in points
    ]


def grid() -> list[Run]:
    """Density 0.80 to 1.40 by 0.05, sharing 5% to 45% by 10%: 65 BurstGPT mixes, half as large."""
    densities, sharings = [0.8 + 0.05 * i for i in range(13)], [0.05 + 0.1 * i for i in range(5)]
    return _grid("burstgpt", densities, sharings, GRID, GRID_VIDEO_TOKENS)


def variance() -> list[Run]:
    """Grids whose compute trace has answers of high variance, scaled: ShareGPT and WildChat.

    Follow-ups in WildChat share a fifth of its prompts, so no mix at density 1.4 shares less than 34%.
    """
    sharings = {"sharegpt": [0.05, 0.15], "wildchat": [0.35, 0.45]}
    return [run for name, values in sharings.items() for run in _grid(name, [0.8, 1.1, 1.4], values)]


def azure() -> list[Run]:
    """The same grid with Azure as the compute trace, scaled."""
    return _grid("azure", [0.8, 1.1, 1.4], [0.05, 0.15])


def models() -> list[Run]:
    """Trace 1, scaled, for every model of the paper, on A100s and H100s."""
    return [
        replace(run, model=model, hardware=hardware)
        for model, hardware in product(MODELS, ("a100-80gb", "h100"))
        for run in _scaled()
        if run.trace == 1 and run.engine == "overlapped"
    ]


def ablations() -> list[Run]:
    """Traces 1 and 2, scaled: blend without one of its parts, or told more or less."""
    base = [run for run in _scaled() if run.trace in (1, 2) and run.engine == "overlapped"]
    blend = [run for run in base if run.policy == "blend"]
    others = {"", *IN_LINE, *CHUNKS, *PDMUX, *TOLD, *TOLD_FOR_GOOD}
    variants = [variant for variant in VARIANTS if variant not in others]
    return base + [replace(run, variant=variant) for variant in variants for run in blend]


def hardware() -> list[Run]:
    """Trace 1, small: blend that takes the GPU for another one, and finds out or does not."""
    variants = ("", *TOLD, *TOLD_FOR_GOOD)
    schedules = product(("mixed", "overlapped"), variants)
    return [
        Run(1, "blend", engine, TOLD_REQUESTS, video_tokens=GRID_VIDEO_TOKENS, variant=variant)
        for engine, variant in schedules
    ]


def chunks() -> list[Run]:
    """Depth-first order on the traces, scaled, with other chunk sizes: is the baseline at its best?"""
    base = [run for run in _scaled() if run.policy == "dfs"]
    return base + [replace(run, variant=variant) for variant in CHUNKS for run in base]


def parts() -> list[Run]:
    """The traces, small: from depth-first order to blend, one part of the gain after the other."""
    schedules = [
        ("dfs", ""),
        *(("dfs", variant) for variant in CHUNKS),
        *(("blend", variant) for variant in (*IN_LINE, "")),
    ]
    return [
        Run(trace, policy, engine, TOLD_REQUESTS, video_tokens=GRID_VIDEO_TOKENS, variant=variant)
        for trace in (1, 2, 3, 4)
        for engine in ("mixed", "overlapped")
        for policy, variant in schedules
    ]


def engines() -> list[Run]:
    """The traces, scaled, and jobs on every engine: blend, and upstream's policies with flags that may suit.

    Longest first is the strongest of them wherever they were compared, so it has the most flags. `lpm` is
    missing because it is `fcfs` while more than 128 requests wait.
    """
    base = [run for run in _scaled() if run.policy == "dfs" and run.engine == "mixed"]
    schedules = [
        *product(("blend", "lof"), ("pdmux",), ("fitted",)),
        *product(("blend", "lof"), ("mixed", "overlapped"), ("",)),
        *product(("blend", "lof"), ("alternating",), ("",)),
        *product(("dfs", "lof"), ("mixed", "overlapped"), ("chunks of 1024",)),
        *product(("dfs", "fcfs"), _ENGINES, ("",)),
        ("dfs", "pdmux", "fitted"),
        *product(("blend", "lof", "dfs", "fcfs"), ("pdmux",), ("",)),
        *product(("lof",), ("pdmux",), ("batches of 4096", "fitted, batches of 4096")),
    ]
    return [
        replace(run, policy=policy, engine=engine, variant=variant)
        for policy, engine, variant in schedules
        for run in base
    ] + real()


def real() -> list[Run]:
    """Jobs that people run, no length known, on every engine: blend against upstream's policies."""
    schedules = [
        *product(("blend", "lof", "dfs", "fcfs"), _ENGINES, ("",)),
        *product(("lof", "dfs"), ("mixed", "overlapped"), ("chunks of 1024",)),
        *product(("blend", "lof"), ("pdmux",), ("fitted",)),
    ]
    return [
        Run(0, policy, engine, 0, hardware="a100-40gb", variant=variant, job=job)
        for job in JOBS
        for policy, engine, variant in schedules
    ]


TABLES: dict[str, Callable[[], list[Run]]] = {
    table.__name__: table
    for table in (
        traces,
        headline,
        quick,
        lpm,
        grid,
        variance,
        azure,
        models,
        ablations,
        hardware,
        chunks,
        parts,
        engines,
        real,
    )
}

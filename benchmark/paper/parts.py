"""Which part of blend's gain over depth-first order is whose, for `tables.parts`: one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean

from benchmark.paper.compare import CHUNKS
from benchmark.paper.report import Record

PARTS = {
    "baseline": "the baseline's best chunk size in place of 8,192",
    "forecast": "blend's forecast of memory, in depth-first order",
    "pacing": "prefill spread over the steps",
    "longest": "the longest answers first: the strongest baseline",
    "order": "blend's own order and both its ends, in place of the longest first",
}
"""What each part adds to those before it."""

ENGINES = ("mixed", "overlapped")


def seconds(records: Sequence[Record], engine: str, trace: int) -> dict[str, float]:
    """Modelled seconds after each part, from depth-first order on; empty where a run is missing."""
    runs = {
        (r["policy"], r["variant"]): r["seconds"]
        for r in records
        if (r["engine"], r["trace"]) == (engine, trace)
    }
    steps: Mapping[str, list[tuple[str, str]]] = {
        "depth first": [("dfs", "")],
        "baseline": [("dfs", variant) for variant in ("", *CHUNKS)],
        "forecast": [("blend", "depth first, no pace")],
        "pacing": [("blend", "depth first")],
        "longest": [("blend", "longest first")],
        "order": [("blend", "")],
    }
    if not all(run in runs for some in steps.values() for run in some):
        return {}
    return {step: min(runs[run] for run in some) for step, some in steps.items()}


def factors(records: Sequence[Record], engine: str) -> dict[str, dict[int, float]]:
    """Speed with each part over the speed without it, by trace."""
    table: dict[str, dict[int, float]] = {part: {} for part in PARTS}
    for trace in sorted({record["trace"] for record in records}):
        times = seconds(records, engine, trace)
        for before, part in zip(times, list(times)[1:], strict=False):
            table[part][trace] = times[before] / times[part]
    return {part: row for part, row in table.items() if row}


def text(records: Sequence[Record]) -> str:
    """The table for people."""
    out = []
    for engine in ENGINES:
        table = factors(records, engine)
        if not table:
            continue
        traces = list(next(iter(table.values())))
        out.append(f"{engine:<80}" + "".join(f"{f'#{trace}':>8}" for trace in traces) + f"{'mean':>8}")
        for part, row in table.items():
            label = f"  {part}: {PARTS[part]}"
            shown = [*row.values(), geometric_mean(row.values())]
            out.append(f"{label:<80}" + "".join(f"{value:>7.3f}x" for value in shown))
        whole = [geometric_mean(row.values()) for row in table.values()]
        product = 1.0
        for factor in whole:
            product *= factor
        out.append(f"{'  all of it':<{80 + 8 * len(traces)}}{product:>7.3f}x")
    return "\n".join([*out, "Geometric means; simulated."])


def draw(path: Path, records: Sequence[Record]) -> None:
    """Seconds of depth-first order, and what each part makes of them: means of the traces, per engine."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 3.6), layout="constrained")
    for place, engine in enumerate(ENGINES):
        share, means = (
            1.0,
            {part: geometric_mean(row.values()) for part, row in factors(records, engine).items()},
        )
        for color, (part, factor) in enumerate(means.items()):
            label = part if not place else None
            axes.barh(place, share - share / factor, left=share / factor, color=f"C{color}", label=label)
            share /= factor
        if means:
            axes.barh(place, share, color="0.85", label=None if place else "left")
    axes.set_yticks(range(len(ENGINES)), ENGINES)
    axes.set_xlabel("modelled seconds over those of depth-first order, chunks of 8,192")
    axes.set_title("Simulated: what each part saves, mean of the traces")
    axes.legend(ncols=3)
    figure.savefig(path, dpi=120)
    plt.close(figure)

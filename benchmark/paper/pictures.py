"""A table as a picture: bars for traces and models, a heat map for a grid, one bar per ablation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.paper.report import Record, ablations, lines, name_of, speeds

_HEAT_MAP_FROM = 20  # workloads; fewer are bars


def draw(path: Path, records: Sequence[Record]) -> None:
    """Write the picture that suits the table; nothing if it has no two runs to compare."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    mixes = [record for record in records if not record["trace"]]
    if ablations(records):
        paint, size = _ablations, (7.0, 4.5)
    elif speeds(records):
        paint, size = _every_schedule, (9.0, 4.0)
    elif len(lines(mixes)) >= _HEAT_MAP_FROM:
        paint, size = _heat_map, (7.0, 3.6)
    elif any(line.overlapped or line.mixed for line in lines(records)):
        paint, size = _bars, (max(6.0, 0.7 * len(lines(records))), 4.0)
    else:
        return
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    paint(axes, records)
    axes.set_title("Simulated")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _bars(axes: Any, records: Sequence[Record]) -> None:
    """Blend over depth-first order on the same engine, a group for each workload."""
    table = [line for line in lines(records) if line.overlapped or line.mixed]
    kinds = {"overlapped": [t.overlapped for t in table], "mixed": [t.mixed for t in table]}
    present = {label: values for label, values in kinds.items() if any(values)}
    width = 0.8 / len(present)
    for offset, (label, values) in enumerate(present.items()):
        places = [i + width * (offset - (len(present) - 1) / 2) for i in range(len(table))]
        axes.bar(places, [value or 0.0 for value in values], width=0.95 * width, label=f"both {label}")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(table)), [t.name for t in table], rotation=90 if len(table) > 8 else 0)
    axes.set_ylabel("blend's speed / depth-first order's")
    axes.legend()


def _every_schedule(axes: Any, records: Sequence[Record]) -> None:
    """Speed of each policy and engine over depth-first order on mixed passes."""
    table = speeds(records)
    names = list(dict.fromkeys(name_of(record) for record in records))
    width = 0.8 / len(names)
    for offset, name in enumerate(names):
        places = [i + width * (offset - (len(names) - 1) / 2) for i in range(len(table))]
        axes.bar(places, [row.get(name) or 0.0 for row in table.values()], width=0.95 * width, label=name)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(table)), [f"{policy}, {engine}" for policy, engine in table], rotation=90)
    axes.set_ylabel("speed / dfs, mixed")
    axes.legend()


def _heat_map(axes: Any, records: Sequence[Record]) -> None:
    """Blend over depth-first order, both overlapped, by density and sharing."""
    points = dict.fromkeys((record["density"], record["sharing"]) for record in records)
    gains = dict(zip(points, [line.overlapped for line in lines(records)], strict=True))
    densities, sharings = (sorted({point[axis] for point in gains}) for axis in (0, 1))
    values = [
        [gains.get((density, sharing)) or float("nan") for density in densities] for sharing in sharings
    ]
    image = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white", fontsize=7)
    axes.set_xticks(range(len(densities)), [f"{density:.2f}" for density in densities])
    axes.set_yticks(range(len(sharings)), [f"{sharing:.0%}" for sharing in sharings])
    axes.set_xlabel("density of the mix")
    axes.set_ylabel("sharing")
    axes.figure.colorbar(image, label="blend's speed / depth-first order's, overlapped")


def _ablations(axes: Any, records: Sequence[Record]) -> None:
    """Speed of each variant over the same run without it."""
    table = ablations(records)
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    height = 0.8 / len(names)
    for offset, name in enumerate(names):
        places = [i + height * (offset - (len(names) - 1) / 2) for i in range(len(table))]
        axes.barh(places, [row.get(name, 0.0) for row in table.values()], 0.95 * height, label=name)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(table)), list(table))
    axes.invert_yaxis()
    axes.set_xlabel("speed / the same run without the variation")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))  # there are bars everywhere

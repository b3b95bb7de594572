"""The charts of a report as SVG within an HTML page: no script, no reference, the page's own text colour."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sglang.batch.plan.schedules import Simulated
from sglang.batch.run.blend_history import BlendHistory, Moment, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Colour that stands for the page's text colour while matplotlib draws."""

COMPUTE, MEMORY, OTHER = "#d9730d", "#2f80c4", "#2e9e62"
"""Colours of the two sides and of whatever is neither; legible on white and on black."""

POINTS = 400
"""Moments that are drawn at most."""

STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(
        (
            "text.color",
            "axes.labelcolor",
            "axes.edgecolor",
            "xtick.color",
            "ytick.color",
            "legend.labelcolor",
        ),
        INK,
    ),
}


def svg(draw: Callable[[Axes], object], name: str, *, height: float = 2.6) -> str:
    """Draw one chart.

    Args:
        draw: draws on axes.
        name: unique in the page, so that no two charts share an id.
        height: inches, of 8 inches width.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(8, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg")
    return _embedded(file.getvalue(), name)


def _embedded(text: str, name: str) -> str:
    """Leave of an SVG file what a page needs of it."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    # Ids of groups are equal in all charts, and nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = text.replace("xlink:href", "href").replace(INK, "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{name}"', 1)


def use(history: BlendHistory) -> Callable[[Axes], object] | None:
    """Draw compute and memory use over time, from the work between two polls; None where it is unknown."""
    moments = [
        m for m in thin(history.moments, POINTS) if m.flop_seconds is not None and m.read_seconds is not None
    ]
    if len(moments) < 3:
        return None
    seconds = _column(moments, "seconds")
    passed = np.maximum(np.diff(seconds), 1e-9)

    def draw(axes: Axes) -> None:
        for name, label, colour in (
            ("flop_seconds", "compute: of the peak FLOP/s", COMPUTE),
            ("read_seconds", "memory: KV reads, of the peak bandwidth", MEMORY),
        ):
            share = np.diff(_column(moments, name)) / passed
            axes.stairs(np.maximum(share, 0), seconds, baseline=None, color=colour, label=label)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(_percent)
        _finish(axes)

    return draw


def partition(history: BlendHistory) -> Callable[[Axes], object]:
    """Draw the KV tokens of both sides over time, and where the partition was between them."""
    moments = thin(history.moments, POINTS)

    def draw(axes: Axes) -> None:
        seconds = _column(moments, "seconds")
        used = [_column(moments, name) for name in ("used_compute", "used_memory")]
        labels = ["in use, compute side", "in use, memory side"]
        axes.stackplot(seconds, used, labels=labels, colors=[COMPUTE, MEMORY], alpha=0.75, step="post")
        compute = np.where([m.reserved > 0 for m in moments], _column(moments, "compute"), np.nan)
        axes.step(
            seconds, compute, where="post", color=INK, linestyle="--", label="reserved for the compute side"
        )
        axes.set_ylabel("KV tokens")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        _finish(axes)

    return draw


def sharing(history: BlendHistory) -> Callable[[Axes], object] | None:
    """Draw the share of the prompts that the cache served, over time; None where it is unknown."""
    moments = [m for m in thin(history.moments, POINTS) if m.sharing is not None]
    if len(moments) < 2:
        return None

    def draw(axes: Axes) -> None:
        axes.step(
            _column(moments, "seconds"),
            _column(moments, "sharing"),
            where="post",
            color=OTHER,
            label="of the input so far, served by the cache",
        )
        axes.axhline(history.sharing_possible, color=INK, linestyle="--", label="possible in the whole pool")
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(_percent)
        _finish(axes)

    return draw


def speed(history: BlendHistory) -> Callable[[Axes], object] | None:
    """Draw modelled seconds of the work done against real ones; None where nothing is modelled."""
    moments = [m for m in thin(history.moments, POINTS) if m.done is not None]
    pace = history.pace
    if pace is None:
        return None

    def draw(axes: Axes) -> None:
        seconds, done = _column(moments, "seconds"), _column(moments, "done")
        axes.plot(seconds, done, color=OTHER, label="modelled seconds of the work done")
        axes.plot(
            [seconds[-1] - pace * done[-1], seconds[-1]],
            [0, done[-1]],
            color=INK,
            linestyle="--",
            label=f"a constant speed: {pace:,.3g} s for each modelled one",
        )
        _finish(axes)

    return draw


def lengths(history: BlendHistory) -> Callable[[Axes], object] | None:
    """Draw expected against real lengths of answers, by powers of two; None where none was unknown."""
    if not history.lengths:
        return None
    expected, real, answers = np.array(history.lengths, np.int64).T
    size = int(max(expected.max(), real.max())) + 1
    counts = np.zeros((size, size))
    counts[real, expected] = answers

    def draw(axes: Axes) -> None:
        shades = counts / counts.max()
        for row, column in zip(*np.nonzero(counts), strict=True):
            shade = 0.15 + 0.85 * shades[row, column] ** 0.5
            axes.fill_between([column, column + 1], row, row + 1, color=MEMORY, alpha=shade, linewidth=0)
            axes.text(column + 0.5, row + 0.5, f"{counts[row, column]:.0f}", ha="center", va="center")
        axes.plot([0, size], [0, size], color=INK, linewidth=0.8, linestyle="--")
        first = int(min(expected.min(), real.min()))
        ticks = range(first, size + 1)
        names = [f"{1 << (tick - 1):,}" if tick else "0" for tick in ticks]
        axes.set_xticks(ticks, names)
        axes.set_yticks(ticks, names)
        axes.set_xlim(first, size)
        axes.set_ylim(first, size)
        axes.set_xlabel("expected when it began, tokens")
        axes.set_ylabel("real, tokens")

    return draw


def simulated_use(runs: Sequence[Simulated], resource: str) -> Callable[[Axes], object]:
    """Draw simulated use of a resource by each policy.

    Args:
        resource: "compute" or "memory".
    """
    peak = {"compute": "FLOP/s", "memory": "bandwidth"}[resource]

    def draw(axes: Axes) -> None:
        for run, colour in zip(runs, (OTHER, COMPUTE, MEMORY), strict=False):
            values = getattr(run.timeline, resource)
            edges = run.timeline.stretch * np.arange(len(values) + 1)
            axes.stairs(values, edges, baseline=None, color=colour, label=run.schedule.policy)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(_percent)
        axes.set_ylabel(f"of the peak {peak}")
        _finish(axes, "simulated seconds")

    return draw


def _finish(axes: Axes, time: str = "seconds") -> None:
    axes.set_xlabel(time)
    axes.set_xlim(left=0)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)


def _percent(value: float, _: Any) -> str:
    return f"{100 * value:.3g}%"


def _column(moments: Sequence[Moment], name: str) -> np.ndarray[Any, Any]:
    return np.array([getattr(moment, name) for moment in moments], np.float64)

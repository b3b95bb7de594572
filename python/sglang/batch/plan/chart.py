"""A picture of a plan: simulated compute and memory use over time (as paper Figure 10), and times."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sglang.batch.plan.report import PlanReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_plan(report: PlanReport, path: Path) -> None:
    """Draw a .png, or an .html page that holds the picture and the report's text.

    Raises:
        ImportError: matplotlib is missing; `check_plan` asks for it before anything is simulated.
    """
    from matplotlib.figure import Figure

    engines = list(report.optimum)
    figure = Figure(figsize=(4.2 * len(engines), 9), layout="constrained")
    rows = figure.subplots(3, len(engines), squeeze=False, sharey="row")
    for column, engine in enumerate(engines):
        _draw_use(report, engine, rows[0][column], "compute")
        _draw_use(report, engine, rows[1][column], "memory")
        _draw_seconds(report, engine, rows[2][column])
    rows[0][0].set_ylabel("share of peak FLOP/s")
    rows[1][0].set_ylabel("share of peak bandwidth")
    rows[0][0].legend(loc="upper right")
    figure.suptitle(f"{report.model} on {report.tensor_parallel} x {report.hardware}, simulated")
    _write(figure, report, path)


def _draw_use(report: PlanReport, engine: str, axes: Axes, resource: str) -> None:
    for run in report.simulated:
        if run.schedule.engine == engine:
            use = getattr(run.timeline, resource)
            edges = run.timeline.stretch * np.arange(len(use) + 1)
            axes.stairs(use, edges, baseline=None, label=run.schedule.policy)
    axes.set_ylim(0, 1.02)
    axes.set_title(f"{engine}: {resource} use")
    part = report.excerpt is not None and report.excerpt.requests < report.requests
    axes.set_xlabel(f"simulated seconds{' of the excerpt' if part else ''}")


def _draw_seconds(report: PlanReport, engine: str, axes: Axes) -> None:
    seconds = {policy: report.seconds(policy, engine) for policy in report.policies}
    bars = {policy: value for policy, value in seconds.items() if value is not None}
    drawn = axes.bar(
        list(bars), list(bars.values()), color=[f"C{report.policies.index(name)}" for name in bars]
    )
    axes.bar_label(drawn, fmt="%.3g")
    axes.margins(y=0.12)
    axes.axhline(report.optimum[engine], color="black", linestyle="--", label="practical optimum")
    axes.set_title(f"{engine}: seconds for all requests")
    axes.legend(loc="lower right")


def _write(figure: Figure, report: PlanReport, path: Path) -> None:
    if path.suffix != ".html":
        figure.savefig(path, dpi=110)
        return
    picture = io.StringIO()
    figure.savefig(picture, format="svg")
    svg = picture.getvalue()
    title = f"Plan for {report.model} on {report.hardware}"
    path.write_text(
        f"<!doctype html>\n<meta charset='utf-8'>\n<title>{html.escape(title)}</title>\n"
        f"<pre>{html.escape(report.text())}</pre>\n{svg[svg.index('<svg') :]}\n"
    )

"""A picture of a run under the blend policy: memory partition and use over time (as in paper Figure 6)."""

from __future__ import annotations

from pathlib import Path

from sglang.batch.run.report import Report


class PictureUnavailable(Exception):
    """There is nothing to draw, or nothing to draw with; the message says which."""


def draw(report: Report, path: Path) -> None:
    """Draw the run into a file, whose format matplotlib chooses by the name's ending.

    Raises:
        PictureUnavailable: matplotlib is missing, or the run was not scheduled by blend.
    """
    if report.blend is None or not report.blend.moments:
        raise PictureUnavailable(f"{path}: only a run under --schedule-policy blend has a partition to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PictureUnavailable(f"{path}: needs matplotlib; pip install matplotlib") from None

    moments = report.blend.moments
    seconds = [moment.seconds for moment in moments]
    figure = Figure(figsize=(9, 5), layout="constrained")
    reserved, used = figure.subplots(2, 1, sharex=True)
    for axes, left, right, title in (
        (reserved, "compute", "memory", "KV capacity reserved for each side"),
        (used, "used_compute", "used_memory", "KV tokens used by each side"),
    ):
        sides = [[getattr(moment, name) for moment in moments] for name in (left, right)]
        axes.stackplot(seconds, sides, labels=["compute side", "memory side"], step="post")
        axes.set_title(title)
        axes.set_ylabel("tokens")
    reserved.legend(loc="upper right")
    used.set_xlabel("seconds")
    figure.savefig(path)

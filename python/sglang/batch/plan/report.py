"""What a plan found, in numbers: text for people, JSON for programs. Every time in it is simulated."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sglang.batch.plan.advice import Advice
from sglang.batch.plan.answers import Answers
from sglang.batch.plan.groups import Group
from sglang.batch.plan.prompts import BadLine
from sglang.batch.plan.schedules import NotSimulated, Schedule, Simulated
from sglang.srt.blend.core.cost.pdmux_choice import PdmuxChoice

SHOWN = 8
"""Groups and bad lines that the text shows; the JSON has all of them."""

LABELS = {
    "fcfs": "fcfs (file order)",
    "lpm": "lpm (SGLang's prefix match)",
    "dfs": "dfs (prompts sorted)",
    "random": "random",
    "blend": "blend",
}
"""What the text calls the policies."""


@dataclass(frozen=True)
class Excerpt:
    """What was simulated of the pool: all of it, or fewer requests that stand for all.

    Attributes:
        requests: how many were simulated.
        kv_tokens: KV tokens that they need together, prefixes counted once.
        scale: factor per engine by which the excerpt's simulated seconds become the pool's, which is the
            ratio of the two practical optima.
    """

    requests: int
    kv_tokens: int
    scale: dict[str, float]


@dataclass(frozen=True)
class PlanReport:
    """The plan of one file. All seconds are simulated, or a bound.

    Attributes:
        tensor_parallel: GPUs that share the model.
        lines: lines of the file that are not blank.
        requests: requests that can be run; media: those of them with pictures, audio or video.
        prompt_tokens, output_tokens: tokens of all of them; output tokens are assumed.
        sharing_possible: share of the prompt tokens that a depth-first walk does not compute, 0 to 1.
        density: Comp / Mem of the pool with that sharing (paper 4.1).
        kv_capacity: KV tokens that fit on the GPUs.
        kv_tokens: KV tokens that all requests need together, prefixes counted once.
        weight_bytes: one GPU's share of the model.
        mem_fraction_static, chunked_prefill_size: SGLang's flags, as simulated.
        groups: requests that share a prefix, those with most work first.
        optimum: seconds that no schedule of the whole pool beats by more than 1%, per engine.
        pdmux: the division of the GPU that suits the pool under PD multiplexing, with which the pdmux engine
            is simulated; None where SGLang cannot divide it.
        longest_answer: tokens, each of which takes a pass.
        excerpt: None where nothing was simulated.
        simulated: of the excerpt; its seconds are not scaled.
        advice: None where nothing was simulated.
    """

    model: str
    hardware: str
    tensor_parallel: int
    lines: int
    bad_lines: tuple[BadLine, ...]
    requests: int
    media: int
    prompt_tokens: int
    output_tokens: int
    answers: Answers
    sharing_possible: float
    density: float
    kv_capacity: int
    kv_tokens: int
    weight_bytes: float
    mem_fraction_static: float
    chunked_prefill_size: int
    groups: tuple[Group, ...]
    optimum: dict[str, float]
    pdmux: PdmuxChoice | None
    longest_answer: int
    excerpt: Excerpt | None
    simulated: tuple[Simulated, ...]
    failed: tuple[NotSimulated, ...]
    advice: Advice | None

    def seconds(self, policy: str, engine: str) -> float | None:
        """Scale a schedule's simulated seconds to the whole pool; None where there is no such simulation."""
        for run in self.simulated:
            if run.schedule == Schedule(policy, engine) and self.excerpt is not None:
                return run.seconds * self.excerpt.scale[engine]
        return None

    @property
    def policies(self) -> list[str]:
        """Policies that were simulated on some engine, in order."""
        return list(dict.fromkeys(run.schedule.policy for run in self.simulated))

    def text(self) -> str:
        """Write the report as aligned lines."""
        gpus = f"{self.tensor_parallel} x {self.hardware}"
        return "\n".join(
            [
                f"plan for {self.model} on {gpus}; nothing ran on a GPU, all times are simulated",
                *self._pool_lines(),
                *self._group_lines(),
                *self._time_lines(),
                *(f"    {line}" for line in self.pdmux_lines() if "pdmux" in self.optimum),
                *(self.advice.lines() if self.advice is not None else ()),
                *self._bad_lines(),
            ]
        )

    def _pool_lines(self) -> Iterable[str]:
        rows = [
            ("requests", f"{self.requests:,} of {self.lines:,} lines{self._media()}"),
            ("tokens", f"{self.prompt_tokens:,} in, {self.output_tokens:,} out"),
            ("answers", f"assumed: {self.answers.text()}"),
            ("prefix sharing", f"{self.sharing_possible:.1%} of the input is possible"),
            ("density", f"{self.density:.3g} = compute time / memory time; 1 keeps both busy"),
            (
                "KV capacity",
                f"{self.kv_capacity:,} tokens beside {self.weight_bytes / 1e9:.1f} GB of weights per GPU; all"
                f" requests together need {self.kv_tokens:,}",
            ),
        ]
        return (f"  {name:<16}{value}" for name, value in rows)

    def _media(self) -> str:
        return f"; {self.media:,} with media, whose encoders are not simulated" if self.media else ""

    def _group_lines(self) -> Iterable[str]:
        alone = self.requests - sum(group.requests for group in self.groups)
        yield f"\n  {len(self.groups):,} groups share a prefix, {alone:,} requests share little"
        if not self.groups:
            return
        yield "    requests  prefix   prompt   output  sharing  density  of the work  for example"
        for group in self.groups[:SHOWN]:
            yield (
                f"    {group.requests:>8,}{group.prefix:>8,}{group.prompt:>9,.0f}{group.output:>9,.0f}"
                f"{group.sharing:>9.0%}{group.density:>9.3g}{group.work:>13.1%}  line {group.line:,}"
                f" {group.custom_id}"
            )
        if len(self.groups) > SHOWN:
            yield f"    and {len(self.groups) - SHOWN:,} smaller ones"

    def _time_lines(self) -> Iterable[str]:
        engines = list(self.optimum)
        yield f"\n  {'simulated seconds':<30}" + "".join(f"{engine:>13}" for engine in engines)
        for policy in self.policies:
            yield self._row(LABELS[policy], [self.seconds(policy, engine) for engine in engines])
        yield self._row("practical optimum", list(self.optimum.values()))
        for policy in self.policies:
            if policy != "blend" and "blend" in self.policies:
                yield self._gain(policy, engines)
        if self.excerpt is None:
            yield "    not simulated: the practical optimum is a bound, not a prediction"
        elif self.excerpt.requests < self.requests:
            part, whole = (tokens / self.kv_capacity for tokens in (self.excerpt.kv_tokens, self.kv_tokens))
            yield (
                f"    {self.excerpt.requests:,} of {self.requests:,} requests were simulated, in whole prefix"
                " groups, and times scaled up by the work they are."
            )
            yield (
                f"    They need {part:.1f} times the KV capacity, all need {whole:.1f} times: the more, the"
                " less other orders share. --simulate-requests takes more."
            )
        for failure in self.failed:
            schedule = failure.schedule
            yield f"    {schedule.policy} on {schedule.engine}: not simulated: {failure.reason}"

    def pdmux_lines(self) -> Iterable[str]:
        """Say how PD multiplexing divides the GPU for this pool, a line at a time; none where it cannot."""
        if self.pdmux is not None:
            for division in self.pdmux.config.divisions:
                yield (
                    f"pdmux with {division.prefill} SMs for prefill and {division.decode} for decode: beside"
                    f" each other all prefill lasts {_seconds(self.pdmux.prefill)} s and all decode"
                    f" {_seconds(self.pdmux.decode)} s (modelled)"
                )

    def _row(self, name: str, values: Iterable[float | None]) -> str:
        return f"    {name:<28}" + "".join(f"{_seconds(value):>13}" for value in values)

    def _gain(self, policy: str, engines: list[str]) -> str:
        cells = []
        for engine in engines:
            theirs, ours = self.seconds(policy, engine), self.seconds("blend", engine)
            cells.append("-" if theirs is None or ours is None else f"{theirs / ours:.2f}x")
        return f"    {f'blend over {policy}':<28}" + "".join(f"{cell:>13}" for cell in cells)

    def _bad_lines(self) -> Iterable[str]:
        if not self.bad_lines:
            return
        yield f"\n  {len(self.bad_lines):,} lines cannot be run and are left out"
        yield from (f"    {bad.message} ({bad.code})" for bad in self.bad_lines[:SHOWN])
        if len(self.bad_lines) > SHOWN:
            yield f"    and {len(self.bad_lines) - SHOWN:,} more; --json lists all"

    def write_json(self, path: Path) -> None:
        """Write everything, and the whole pool's simulated seconds per policy and engine.

        Raises:
            OSError: the file cannot be written.
        """
        whole = {**asdict(self), "seconds": self._all_seconds()}
        path.write_text(json.dumps(_finite(whole), indent=2) + "\n")

    def _all_seconds(self) -> dict[str, dict[str, float | None]]:
        return {
            policy: {engine: self.seconds(policy, engine) for engine in self.optimum}
            for policy in self.policies
        }


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _finite(value: Any) -> Any:
    """Replace what JSON does not know: the infinite density of a pool that decodes nothing becomes null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

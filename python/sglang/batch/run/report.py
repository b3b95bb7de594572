"""What a run did, in numbers: text for people, JSON for programs.

Times are wall-clock seconds and start with the first submission; loading the model is not in them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from sglang.batch.run.blend_history import BlendHistory
from sglang.batch.run.tally import Tally
from sglang.batch.upstream import ServerArgs


@dataclass(frozen=True)
class Report:
    """The numbers of one run.

    Attributes:
        lines: lines that are not blank; each was answered or failed, `earlier` ones by runs before this one.
        failures: failed lines by error code, the most frequent first.
        seconds, barrier_seconds: as in `Tally`.
        prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens: tokens as the engine counted them.
        twins, twin_tokens: lines that got the record of an equal one, and the tokens that were not computed
            for them.
        tokens_per_second: input and output tokens.
        kv_capacity: tokens, None where the scheduler did not say.
        blend: None under any other policy.
        tuning: which flags were chosen for the user, and why; None where nothing was looked for.
    """

    policy: str
    device: str
    lines: int
    answered: int
    failed: int
    earlier: int
    failures: dict[str, int]
    seconds: float
    barrier_seconds: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    twins: int
    twin_tokens: int
    tokens_per_second: float
    kv_capacity: int | None
    blend: BlendHistory | None
    tuning: str | None = None

    @classmethod
    def of(
        cls, tally: Tally, server_args: ServerArgs, *, kv_capacity: int | None, blend: BlendHistory | None
    ) -> Report:
        """Round a tally's numbers and say on what they were reached."""
        return cls(
            policy=str(server_args.schedule_policy),
            device=str(server_args.device or _platform_device()),
            lines=tally.lines,
            answered=tally.answered,
            failed=tally.failed,
            earlier=tally.earlier,
            failures=dict(tally.codes.most_common()),
            seconds=round(tally.seconds, 3),
            barrier_seconds=round(tally.barrier_seconds, 3),
            prompt_tokens=tally.prompt_tokens,
            cached_tokens=tally.cached_tokens,
            completion_tokens=tally.completion_tokens,
            reasoning_tokens=tally.reasoning_tokens,
            twins=tally.twins,
            twin_tokens=tally.twin_tokens,
            tokens_per_second=round(tally.tokens_per_second, 1),
            kv_capacity=kv_capacity,
            blend=blend,
        )

    @property
    def sharing(self) -> float:
        """Share of all prompt tokens that came from the cache, 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of what there is to say without blend's own numbers."""
        rows = [
            ("lines", f"{self.answered:,} answered, {self.failed:,} with an error record{self._earlier()}"),
            *((f"  {code}", f"{count:,}") for code, count in self.failures.items()),
            ("time", f"{self.seconds:.1f} s; the pool was complete after {self.barrier_seconds:.1f} s"),
            ("tokens", f"{self.prompt_tokens:,} in, {self.completion_tokens:,} out{self._reasoning()}"),
            ("throughput", f"{self.tokens_per_second:,.1f} tokens/s in + out, on {self.device}"),
            ("prefix sharing", f"{self.sharing:.1%} of the input came from the cache{self._possible()}"),
        ]
        if self.twins:
            saved = f"{self.twins:,} lines with the answer of an equal one, {self.twin_tokens:,} tokens saved"
            rows.append(("dedupe", saved))
        if self.kv_capacity is not None:
            rows.append(("KV capacity", f"{self.kv_capacity:,} tokens"))
        rows.append(("policy", self.policy))
        return rows

    def text(self) -> str:
        """Write the report as aligned lines."""
        text = "\n".join(f"  {name:<16}{value}" for name, value in self.rows())
        return f"{text}\n{self.blend.text()}" if self.blend is not None else text

    def _earlier(self) -> str:
        return f" ({self.earlier:,} of them by earlier runs)" if self.earlier else ""

    def _reasoning(self) -> str:
        return f", {self.reasoning_tokens:,} of them reasoning" if self.reasoning_tokens else ""

    def _possible(self) -> str:
        return "" if self.blend is None else f" ({self.blend.sharing_possible:.1%} possible)"

    def write_json(self, path: Path) -> None:
        """Write every number.

        Raises:
            OSError: the file cannot be written.
        """
        path.write_text(json.dumps({**asdict(self), "sharing": round(self.sharing, 4)}, indent=2) + "\n")


def _platform_device() -> str:
    """Name the device that upstream takes when the user names none."""
    from sglang.srt.platforms import current_platform

    return str(current_platform.device_type)

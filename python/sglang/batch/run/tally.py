"""What a job has done, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from sglang.batch.records import Usage


@dataclass(slots=True)
class Tally:
    """What a job has done so far, earlier runs of it included.

    Attributes:
        lines: lines of the input that are not blank.
        answered, failed: lines whose record says so.
        codes: failed lines by error code.
        prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens: tokens as the engine counted them;
            cached ones are prompt tokens whose KV was there already, reasoning ones are completion tokens.
        twins, twin_tokens: lines that got the record of an equal one, and the tokens in and out that were not
            computed for them; these count nowhere else.
        earlier: lines that had their record when this run started.
        earlier_tokens: tokens in and out of those.
        barrier_seconds: from the first submission of this run until the barrier opened, which is what
            rendering and tokenizing the first pool took.
        started: the clock (`time.monotonic`) at the first submission of this run; 0 before.
        seconds: from the first submission of this run until now, or the end.
        restarts: times the engine was started again.
    """

    lines: int = 0
    answered: int = 0
    failed: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    twins: int = 0
    twin_tokens: int = 0
    earlier: int = 0
    earlier_tokens: int = 0
    barrier_seconds: float = 0.0
    started: float = 0.0
    seconds: float = 0.0
    restarts: int = 0

    @property
    def done(self) -> int:
        """Lines that have their record."""
        return self.answered + self.failed

    @property
    def tokens(self) -> int:
        """Tokens processed, input and output."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def tokens_per_second(self) -> float:
        """Tokens processed by this run per second: what batches are measured by (paper 6)."""
        return (self.tokens - self.earlier_tokens) / self.seconds if self.seconds > 0 else 0.0

    def add(self, code: str | None, usage: Usage, spared: Usage | None = None) -> None:
        """Count a line that has its record now.

        Args:
            code: of its error; None if it was answered.
            usage: what was computed for it.
            spared: what was not, since it got the record of an equal line; None if it was run.
        """
        if spared is not None:
            self.twins += 1
            self.twin_tokens += spared.prompt + spared.completion
        if code is None:
            self.answered += 1
        else:
            self.failed += 1
            self.codes[code] += 1
        self.prompt_tokens += usage.prompt
        self.cached_tokens += usage.cached
        self.completion_tokens += usage.completion
        self.reasoning_tokens += usage.reasoning

"""Speculative decoding: a step yields several tokens of a request, and a row for each that it verifies.

Estimates, forecasts and densities count output tokens, whatever a step yields: all running requests grow
alike, so the order of their ends and the KV at each of them do not change. Steps are converted here.
"""

from __future__ import annotations

import math

_PRIOR = 32
"""Verifications of one token each that are assumed before the first is seen."""

_MEMORY = 4096
"""Verifications after which what was seen before counts half."""


class Speculation:
    """What a decoding step does for one request; without speculation, one row and one token.

    Counts of tokens and never a clock, so that tensor-parallel ranks agree.

    Args:
        draft_tokens: rows that a step computes for each decoding request: the tokens that it verifies.
        ahead: KV tokens that each decoding request holds beyond those that it has generated, for drafts.

    Attributes:
        draft_tokens, ahead: as given.

    Half of the steps yield one token, half of them three:

    >>> eagle = Speculation(draft_tokens=4, ahead=8)
    >>> for _ in range(10_000):
    ...     eagle.observe(tokens=4, verifications=2)
    >>> round(eagle.accept_length, 2), round(eagle.steps(100)), round(eagle.rows(100))
    (2.0, 50, 200)
    """

    def __init__(self, draft_tokens: int = 1, ahead: int = 0) -> None:
        self.draft_tokens, self.ahead = draft_tokens, ahead
        self._tokens = self._verifications = _PRIOR

    @property
    def accept_length(self) -> float:
        """Tokens that a step yields for each decoding request, the mean of late; 1 without speculation."""
        return self._tokens / self._verifications

    def observe(self, tokens: int, verifications: int) -> None:
        """Requests have got so many tokens from so many verifications, a step of a request being one."""
        self._tokens += tokens
        self._verifications += verifications
        while self._verifications > _MEMORY:
            self._tokens, self._verifications = self._tokens // 2, self._verifications // 2

    def steps(self, tokens: float) -> float:
        """Steps in which one request gets so many tokens."""
        return tokens / self.accept_length

    def rows(self, tokens: float) -> float:
        """Rows that steps compute to yield so many tokens."""
        return self.draft_tokens * tokens / self.accept_length

    def tokens(self, steps: int) -> int:
        """Tokens that one request gets in so many steps, the last one counted whole."""
        return math.ceil(steps * self.accept_length)

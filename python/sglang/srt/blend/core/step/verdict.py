"""What a step decides about one waiting request, and why."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Verdict(Enum):
    """What happens to a request that is considered."""

    ADMIT = "admit"
    """It begins in this step."""
    ADMIT_PREEMPTIBLE = "admit_preemptible"
    """It begins in KV that is promised to others, and is the first to be retracted when they need it."""
    DEFER = "defer"
    """It waits; the next one is considered."""
    SIDE_FULL = "side_full"
    """It does not fit, so its side of the density order waits; the other side goes on."""
    ENOUGH = "enough"
    """The step considers nobody else."""


class Reason(Enum):
    """Why; the values are the names that users see in metrics and logs."""

    FITS = "fits"
    """KV use stays within the capacity until everyone ends, as far as estimates tell."""
    NOTHING_RUNS = "nothing_runs"
    """The engine is idle, so someone goes whatever forecasts say."""
    NOT_FORECAST = "not_forecast"
    """The engine's own budgets decide: those of sliding windows and recurrent states are not forecast."""
    WORTH_PREEMPTION = "worth_preemption"
    """It does not fit to its end, but until then it saves more than computing it once more costs."""
    NOT_PROPOSED = "not_proposed"
    """The plan does not want it in this step, nor anyone behind it."""
    QUOTA_SPENT = "quota_spent"
    """The prompt tokens that this step should prefill are spent."""
    SIDE_WAITS = "side_waits"
    """A request of its side did not fit, and nobody has left since."""
    SHARED_PREFIX = "shared_prefix"
    """Another request is computing its prefix, which is cached one step later."""
    NO_ROOM = "no_room"
    """KV use would exceed the capacity, or what the compute side needs of it."""
    ENGINE_REFUSED = "engine_refused"
    """The engine cannot allocate it now."""

    @property
    def waits(self) -> bool:
        """Whether this keeps a request waiting."""
        return self in _WAITS

    @property
    def lacks_memory(self) -> bool:
        """Whether it waits for KV that others hold."""
        return self in (Reason.NO_ROOM, Reason.ENGINE_REFUSED)


_WAITS = frozenset(
    {
        Reason.NOT_PROPOSED,
        Reason.QUOTA_SPENT,
        Reason.SIDE_WAITS,
        Reason.SHARED_PREFIX,
        Reason.NO_ROOM,
        Reason.ENGINE_REFUSED,
    }
)


class Decision(NamedTuple):
    """What was asked about a request, and the verdict with its reason.

    Attributes:
        slot, new_tokens, unheld_tokens, shares: as given to `Step.consider`.
        prefill_tokens: prompt tokens that an admitted request may prefill in this step; None is as many as
            the engine takes.
    """

    slot: int
    new_tokens: int
    unheld_tokens: int
    shares: bool
    verdict: Verdict = Verdict.DEFER
    reason: Reason = Reason.NOT_PROPOSED
    prefill_tokens: int | None = None

    @property
    def admits(self) -> bool:
        """Whether the request begins now, if the engine can allocate it."""
        return self.verdict in (Verdict.ADMIT, Verdict.ADMIT_PREEMPTIBLE)

    def because(self, verdict: Verdict, reason: Reason) -> Decision:
        """The same request with this verdict."""
        return self._replace(verdict=verdict, reason=reason)

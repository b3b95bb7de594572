"""The blend scheduler's own numbers over a run: what it could share, what it mixed, how it split memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any

ROWS = 10
"""Rows of the text picture; a longer run is thinned out evenly."""

WIDTH = 40
"""Characters that stand for the whole KV capacity in the text picture."""


@dataclass(frozen=True)
class Moment:
    """One look at the scheduler. Tokens, except `seconds` since the start of the run. Nothing is reserved
    when nobody waits."""

    seconds: float
    compute: int
    memory: int
    """KV capacity reserved for requests from the compute and the memory side (M_L and M_R, paper 5.3)."""
    used_compute: int
    used_memory: int

    @property
    def reserved(self) -> int:
        return self.compute + self.memory


@dataclass(frozen=True)
class BlendHistory:
    """A run under the blend policy.

    Attributes:
        hardware: profile that the planner's cost model used.
        density: Comp/Mem of the whole pool on that hardware (paper 4.1); None if nothing of it decodes.
        sharing_possible: part of the pool's prompt tokens that need not be computed, 0 to 1.
        held: times a request waited one step because another computed its prefix.
        retractions: running requests that went back to the queue.
    """

    hardware: str
    density: float | None
    sharing_possible: float
    held: int
    retractions: int
    moments: tuple[Moment, ...]

    @classmethod
    def of(cls, states: Sequence[tuple[float, dict[str, Any]]]) -> BlendHistory | None:
        """From `(seconds, scheduler state)` samples; None if there are none (another policy).

        Density and possible sharing are those of the largest pool that a plan has seen. Moments begin with
        the first plan that divides the memory.
        """
        if not states:
            return None
        moments = (_moment(seconds, state) for seconds, state in states)
        last = states[-1][1]
        return cls(
            hardware=str(last["hardware"]),
            density=last["pool_density"],
            sharing_possible=last["sharing_possible"],
            held=int(last["held"]),
            retractions=int(last["retractions"]),
            moments=tuple(dropwhile(lambda moment: not moment.reserved, moments)),
        )

    def text(self) -> str:
        lines = []
        if self.density is not None:
            value = f"{self.density:.3g} = compute time / memory time, modelled for {self.hardware}"
            lines.append(f"  {'density':<16}{value}")
        lines.append(
            f"  {'scheduling':<16}{self.held:,} waits for a shared prefix, {self.retractions:,} retractions"
        )
        if self.moments:
            lines.append(
                f"  {'partition':<16}of the KV capacity: # compute side, = memory side; tokens in use"
            )
            lines += [_row(moment) for moment in _thin(self.moments, ROWS)]
        return "\n".join(lines)


def _moment(seconds: float, state: dict[str, Any]) -> Moment:
    return Moment(
        seconds=round(seconds, 1),
        compute=state["partition_compute_tokens"],
        memory=state["partition_memory_tokens"],
        used_compute=state["used_compute_tokens"],
        used_memory=state["used_memory_tokens"],
    )


def _row(moment: Moment) -> str:
    left = round(WIDTH * moment.compute / moment.reserved) if moment.reserved else 0
    picture = "#" * left + "=" * (WIDTH - left) if moment.reserved else " " * WIDTH
    return f"  {moment.seconds:>9.0f} s     |{picture}|  {moment.used_compute:,} + {moment.used_memory:,}"


def _thin(moments: Sequence[Moment], rows: int) -> list[Moment]:
    if len(moments) <= rows:
        return list(moments)
    return [moments[round(i * (len(moments) - 1) / (rows - 1))] for i in range(rows)]

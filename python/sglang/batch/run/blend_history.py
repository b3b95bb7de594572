"""What the blend policy did over a run: what it could share, what it mixed, how it split the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import dropwhile
from typing import Any, NotRequired, TypedDict

from sglang.srt.blend.core.cost.step_report import StepReport

ROWS = 10
"""Rows of the text picture; a longer run is thinned out evenly."""

WIDTH = 40
"""Characters that stand for the whole KV capacity in the text picture."""


class BlendState(TypedDict):
    """The part of the policy's state that is looked at; units as in `Moment` and `BlendHistory`.

    `outlook` is the planner's `Outlook`, None where it has none.
    """

    hardware: str
    pool_density: float | None
    sharing_possible: float
    held: int
    expected_outputs: int
    retractions: int
    partition_compute_tokens: int
    partition_memory_tokens: int
    used_compute_tokens: int
    used_memory_tokens: int
    sharing_achieved: NotRequired[float]
    outlook: NotRequired[dict[str, float] | None]
    lengths: NotRequired[list[list[int]]]
    decisions: NotRequired[dict[str, int]]
    engine: NotRequired[str | None]
    step_times: NotRequired[dict[str, Any] | None]


@dataclass(frozen=True)
class Moment:
    """The KV capacity as one poll found it.

    Attributes:
        seconds: since the start of the run.
        compute, memory: tokens reserved for requests from the compute and the memory side (M_L and M_R,
            paper 5.3); both are 0 when nobody waits.
        used_compute, used_memory: tokens in use by requests of each side.
        sharing: share of the admitted prompt tokens that the cache served so far, 0 to 1.
        done, left, left_high, estimated: as in the planner's `Outlook`; answers: lengths learned so far.
        flop_seconds, read_seconds: of the work so far, seconds at the hardware's peak FLOP/s and, for KV
            reads, at its peak bandwidth.

    What the scheduler does not say is None.
    """

    seconds: float
    compute: int
    memory: int
    used_compute: int
    used_memory: int
    sharing: float | None = None
    done: float | None = None
    left: float | None = None
    left_high: float | None = None
    estimated: float | None = None
    answers: int = 0
    flop_seconds: float | None = None
    read_seconds: float | None = None

    @property
    def reserved(self) -> int:
        """Tokens reserved for either side."""
        return self.compute + self.memory


@dataclass(frozen=True)
class BlendHistory:
    """A run under the blend policy.

    Attributes:
        hardware: name of the profile that the planner's cost model used.
        density: Comp/Mem of the whole pool on that hardware (paper 4.1); None if nothing of it decodes.
        sharing_possible: share of the pool's prompt tokens that need not be computed, 0 to 1.
        held: times a request waited one step because another computed its prefix.
        expected_outputs: requests whose answers were expected to be as long as earlier ones of their kind.
        retractions: times a running request went back to the queue.
        moments: the polls, in order, from the first on that found a partition.
        decisions: how often each reason was given for admitting a request or letting it wait.
        lengths: (expected, real, answers) of unknown lengths by powers of two, see `WorkDone.lengths`.
        engine: how passes are modelled; None where they are not.
        step_times: predicted against real seconds of its steps; None where they were not measured.
    """

    hardware: str
    density: float | None
    sharing_possible: float
    held: int
    expected_outputs: int
    retractions: int
    moments: tuple[Moment, ...]
    decisions: dict[str, int] = field(default_factory=dict)
    lengths: tuple[tuple[int, int, int], ...] = ()
    engine: str | None = None
    step_times: StepReport | None = None

    @classmethod
    def of(cls, states: Sequence[tuple[float, BlendState]]) -> BlendHistory | None:
        """Sum up what polls found; None if they found nothing, as under any other policy.

        Density and possible sharing are those of the largest pool that a plan has seen.

        Args:
            states: each poll's seconds since the start of the run, and the policy's state then.
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
            expected_outputs=int(last["expected_outputs"]),
            retractions=int(last["retractions"]),
            moments=tuple(dropwhile(lambda moment: not moment.reserved, moments)),
            decisions=last.get("decisions", {}),
            lengths=tuple((expected, real, answers) for expected, real, answers in last.get("lengths", ())),
            engine=last.get("engine"),
            step_times=StepReport(**measured) if (measured := last.get("step_times")) else None,
        )

    @property
    def pace(self) -> float | None:
        """Real seconds for each modelled second of the work done; None where nothing is modelled."""
        done = [(moment.seconds, moment.done) for moment in self.moments if moment.done is not None]
        working = next((i for i, (_, modelled) in enumerate(done) if modelled > 0), None)
        if working is None:
            return None
        seconds = done[-1][0] - done[max(working - 1, 0)][0]
        return seconds / done[-1][1] if seconds > 0 else None

    def text(self) -> str:
        """Write the history as aligned lines, the partition over time as a picture."""
        lines = []
        if self.density is not None:
            value = f"{self.density:.3g} = compute time / memory time, modelled for {self.hardware}"
            lines.append(f"  {'density':<16}{value}")
        lines.append(
            f"  {'scheduling':<16}{self.held:,} waits for a shared prefix, {self.retractions:,} retractions"
        )
        if self.expected_outputs:
            value = f"{self.expected_outputs:,} answers were expected to be as long as earlier ones"
            lines.append(f"  {'lengths':<16}{value}")
        if self.step_times is not None and self.step_times.steps:
            lines.append(f"  {'step times':<16}{self.step_times.line}")
        if self.moments:
            lines.append(
                f"  {'partition':<16}of the KV capacity: # compute side, = memory side; tokens in use"
            )
            lines += [_row(moment) for moment in thin(self.moments, ROWS)]
        return "\n".join(lines)


def _moment(seconds: float, state: BlendState) -> Moment:
    outlook = state.get("outlook") or {}
    return Moment(
        seconds=round(seconds, 1),
        compute=state["partition_compute_tokens"],
        memory=state["partition_memory_tokens"],
        used_compute=state["used_compute_tokens"],
        used_memory=state["used_memory_tokens"],
        sharing=state.get("sharing_achieved"),
        done=outlook.get("done"),
        left=outlook.get("left"),
        left_high=outlook.get("left_high"),
        estimated=outlook.get("estimated"),
        answers=answers_learned(state),
        flop_seconds=outlook.get("compute"),
        read_seconds=outlook.get("memory"),
    )


def answers_learned(state: BlendState) -> int:
    """Count the answers of unknown length that have ended."""
    return sum(answers for _, _, answers in state.get("lengths", ()))


def _row(moment: Moment) -> str:
    """Draw one moment as a line of WIDTH characters, which stand for what is reserved."""
    left = round(WIDTH * moment.compute / moment.reserved) if moment.reserved else 0
    picture = "#" * left + "=" * (WIDTH - left) if moment.reserved else " " * WIDTH
    return f"  {moment.seconds:>9.0f} s     |{picture}|  {moment.used_compute:,} + {moment.used_memory:,}"


def thin(moments: Sequence[Moment], rows: int) -> list[Moment]:
    """Leave `rows` moments at regular distances, both ends among them."""
    if len(moments) <= rows:
        return list(moments)
    return [moments[round(i * (len(moments) - 1) / (rows - 1))] for i in range(rows)]

"""What can happen to a line of a batch, as a function without side effects.

pending --SUBMIT--> running --ANSWER--> answered
   ^  ^               |  `----FAILURE-> failed --RETRY--> pending
   |  `--INTERRUPT----+
   `-----CRASH--------+---CRASH, the second--> quarantined, which is run alone:
                           ANSWER -> answered; FAILURE, CRASH -> failed; INTERRUPT -> quarantined
answered, failed --LOST--> pending
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, IntEnum

CRASHES_TO_QUARANTINE = 2
"""Engine deaths that a line may be suspected of before it is run alone."""


class LineState(IntEnum):
    """The states; the numbers are those of the journal, where nothing is ever `RUNNING`."""

    PENDING = 0
    RUNNING = 1
    ANSWERED = 2
    FAILED = 3
    QUARANTINED = 4


class LineEvent(Enum):
    """What can happen to a line.

    SUBMIT: it goes to the engine. ANSWER, FAILURE: its record is on disk. CRASH: the engine died and the line
    may be why. INTERRUPT: the run ended or the engine died for another reason. RETRY: the user wants a failed
    line run again. LOST: its record is gone from the disk.
    """

    SUBMIT = "submit"
    ANSWER = "answer"
    FAILURE = "failure"
    CRASH = "crash"
    INTERRUPT = "interrupt"
    RETRY = "retry"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class LineProgress:
    """How far a line is.

    Attributes:
        attempts: times it was submitted since it was last pending for good.
        crashes: engine deaths that it was suspected of.
    """

    state: LineState = LineState.PENDING
    attempts: int = 0
    crashes: int = 0


class UnexpectedEvent(Exception):
    """An event that cannot happen to a line in its state: a bug."""


_NEXT = {
    (LineState.PENDING, LineEvent.SUBMIT): LineState.RUNNING,
    (LineState.RUNNING, LineEvent.ANSWER): LineState.ANSWERED,
    (LineState.RUNNING, LineEvent.FAILURE): LineState.FAILED,
    (LineState.RUNNING, LineEvent.CRASH): LineState.PENDING,
    (LineState.RUNNING, LineEvent.INTERRUPT): LineState.PENDING,
    (LineState.QUARANTINED, LineEvent.ANSWER): LineState.ANSWERED,
    (LineState.QUARANTINED, LineEvent.FAILURE): LineState.FAILED,
    (LineState.QUARANTINED, LineEvent.CRASH): LineState.FAILED,
    (LineState.QUARANTINED, LineEvent.INTERRUPT): LineState.QUARANTINED,
    (LineState.FAILED, LineEvent.RETRY): LineState.PENDING,
    (LineState.ANSWERED, LineEvent.LOST): LineState.PENDING,
    (LineState.FAILED, LineEvent.LOST): LineState.PENDING,
}


def next_state(line: LineProgress, event: LineEvent) -> LineProgress:
    """Tell where an event takes a line.

    >>> next_state(LineProgress(), LineEvent.SUBMIT)
    LineProgress(state=<LineState.RUNNING: 1>, attempts=1, crashes=0)

    Raises:
        UnexpectedEvent: the event cannot happen in the line's state.
    """
    try:
        state = _NEXT[line.state, event]
    except KeyError:
        raise UnexpectedEvent(f"{event.value} of a line that is {line.state.name.lower()}") from None
    if event in (LineEvent.RETRY, LineEvent.LOST):
        return LineProgress(state)
    if event is LineEvent.SUBMIT:
        return replace(line, state=state, attempts=line.attempts + 1)
    if event is LineEvent.CRASH:
        crashes = line.crashes + 1
        if state is LineState.PENDING and crashes >= CRASHES_TO_QUARANTINE:
            state = LineState.QUARANTINED
        return replace(line, state=state, crashes=crashes)
    return replace(line, state=state)

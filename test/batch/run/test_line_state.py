"""A line gets to its end whatever happens, and only through events that can happen."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sglang.batch.run.line_state import (
    CRASHES_TO_QUARANTINE,
    LineEvent,
    LineProgress,
    LineState,
    UnexpectedEvent,
    next_state,
)

RECORDED = (LineState.ANSWERED, LineState.FAILED)
IN_ENGINE = (LineState.RUNNING, LineState.QUARANTINED)


class OneLine(RuleBasedStateMachine):
    """A line beside what a run knows of it: whether it has a record, and how often it is to blame."""

    def __init__(self) -> None:
        super().__init__()
        self.line = LineProgress()
        self.record: bool = False
        self.blamed = 0

    def happens(self, event: LineEvent) -> None:
        self.line = next_state(self.line, event)

    @precondition(lambda self: self.line.state is LineState.PENDING)
    @rule()
    def submit(self) -> None:
        self.happens(LineEvent.SUBMIT)

    @precondition(lambda self: self.line.state in IN_ENGINE)
    @rule(event=st.sampled_from([LineEvent.ANSWER, LineEvent.FAILURE]))
    def reply(self, event: LineEvent) -> None:
        self.happens(event)
        self.record = True

    @precondition(lambda self: self.line.state in IN_ENGINE)
    @rule()
    def crash(self) -> None:
        alone = self.line.state is LineState.QUARANTINED
        self.happens(LineEvent.CRASH)
        self.blamed += 1
        self.record = alone

    @precondition(lambda self: self.line.state in IN_ENGINE)
    @rule()
    def interrupt(self) -> None:
        self.happens(LineEvent.INTERRUPT)

    @precondition(lambda self: self.line.state is LineState.FAILED)
    @rule()
    def retry(self) -> None:
        self.happens(LineEvent.RETRY)
        self.record, self.blamed = False, 0

    @precondition(lambda self: self.line.state in RECORDED)
    @rule()
    def lose(self) -> None:
        self.happens(LineEvent.LOST)
        self.record, self.blamed = False, 0

    @invariant()
    def a_line_has_a_record_exactly_when_it_is_done(self) -> None:
        assert self.record == (self.line.state in RECORDED)

    @invariant()
    def a_line_is_blamed_for_few_crashes_and_then_run_alone(self) -> None:
        assert self.line.crashes == self.blamed <= CRASHES_TO_QUARANTINE + 1
        if self.blamed >= CRASHES_TO_QUARANTINE:
            assert self.line.state in (LineState.QUARANTINED, *RECORDED)
        if self.line.state is LineState.QUARANTINED:
            assert self.blamed == CRASHES_TO_QUARANTINE


TestOneLine = OneLine.TestCase
TestOneLine.settings = settings(max_examples=50, deadline=None)

POSSIBLE = {
    LineState.PENDING: {LineEvent.SUBMIT},
    LineState.RUNNING: {LineEvent.ANSWER, LineEvent.FAILURE, LineEvent.CRASH, LineEvent.INTERRUPT},
    LineState.QUARANTINED: {LineEvent.ANSWER, LineEvent.FAILURE, LineEvent.CRASH, LineEvent.INTERRUPT},
    LineState.ANSWERED: {LineEvent.LOST},
    LineState.FAILED: {LineEvent.LOST, LineEvent.RETRY},
}


@pytest.mark.parametrize("state", LineState)
@pytest.mark.parametrize("event", LineEvent)
def test_an_event_that_cannot_happen_is_refused(state: LineState, event: LineEvent) -> None:
    if event in POSSIBLE[state]:
        next_state(LineProgress(state), event)
    else:
        with pytest.raises(UnexpectedEvent, match=event.value):
            next_state(LineProgress(state), event)

"""A batch that is being carried out."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

from sglang.batch.run.stops import Stops
from sglang.batch.run.tally import Tally
from sglang.batch.serve.room import Seat, Terms

CANCELLED, EXPIRED = "batch_cancelled", "batch_expired"
"""Error codes of lines that were not run any more."""

CANCEL_SECONDS = 570.0
"""Seconds that the requests of a cancelled batch get: it is `cancelling` for 10 minutes at most."""


@dataclass
class Live:
    """A batch that is being carried out.

    Attributes:
        terms: on which it is run.
        lines: of it, none before they are counted.
        tally: what is done of it; None before its job is open.
        twins: lines that get the record of an equal one.
        seat: its place in the engine's room; None while it has none.
        ending: error code of the lines that are left, once it is not to go on.
    """

    terms: Terms
    lines: int = 0
    stops: Stops = field(default_factory=lambda: Stops(()))
    tally: Tally | None = None
    twins: int = 0
    seat: Seat | None = None
    ending: str | None = None

    @property
    def ends(self) -> bool:
        """Whether no line of it is run any more."""
        return self.ending is not None or (self.tally is not None and self.tally.done == self.tally.lines)

    def end(self, code: str) -> None:
        """Let it run no more lines than those that run."""
        if self.ending is None:
            self.ending = code
            if self.seat is not None:
                self.seat.waiting.close()
            self.stops.stop(signal.SIGINT if code == CANCELLED else signal.SIGTERM)

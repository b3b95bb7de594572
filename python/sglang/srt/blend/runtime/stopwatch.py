"""Seconds that the passes of a scheduler take, by a clock on the wall or by a simulated one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang.srt.blend.runtime.step_work import Work, batch_work

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

Clock = Callable[[], float]
"""Seconds since some moment."""

Ended = Callable[[Work, float], None]
"""Told of a pass that has ended: its work, and the seconds that it took; 0 where they say nothing."""


class Stopwatch:
    """Pairs the batches that are launched with their results, which come in the same order.

    A pass lasts from when it was launched, or from when the result of the one before it was there where it
    was launched beside that (upstream's overlap schedule), until its own result is there: time in which
    nothing ran is nobody's.

    Args:
        ended: told of every pass.
        simulated: a clock that stands still but for passes, and has moved by one's time when it is launched;
            None takes the time on the wall.
    """

    def __init__(self, ended: Ended, simulated: Clock | None = None) -> None:
        self._ended, self._simulated = ended, simulated
        self._clock = simulated or time.perf_counter
        self._under_way: deque[tuple[Work, float, bool]] = deque()
        self._last_result = float("-inf")

    def launching(self, batch: ScheduleBatch) -> None:
        """A batch is about to be launched."""
        self._under_way.append((batch_work(batch), self._clock(), _plain(batch)))

    def launched(self) -> None:
        """It has been launched."""
        if self._simulated is not None:
            self._end(since=self._under_way[-1][1])

    def result(self) -> None:
        """The result of the earliest batch under way has been processed."""
        if self._simulated is None and self._under_way:
            self._end(since=max(self._under_way[0][1], self._last_result))

    def _end(self, since: float) -> None:
        work, _, plain = self._under_way.popleft()
        self._last_result = self._clock()
        self._ended(work, self._last_result - since if plain else 0.0)


def _plain(batch: ScheduleBatch) -> bool:
    """Whether the decoder is all that a batch runs; what an encoder takes is not modelled."""
    if not batch.forward_mode.is_extend():
        return True
    prefills = len(batch.reqs) - len(batch.decoding_reqs or ())
    return all(req.multimodal_inputs is None for req in batch.reqs[:prefills])

"""Two streams of one GPU against one clock, for simulating PD multiplexing (see `pdmux`)."""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from sglang.srt.blend.core.cost.pdmux import Load, PdmuxTimes


class Stream(IntEnum):
    """What runs on a stream."""

    PREFILL = 0
    DECODE = 1


class TwoStreams:
    """Each stream runs what it was given, one after another; what runs at once slows each other down.

    Args:
        times: says how much.

    Attributes:
        now: seconds since the start.
    """

    def __init__(self, times: PdmuxTimes) -> None:
        self.now = 0.0
        self._times = times
        self._queues: tuple[deque[tuple[Load, float]], ...] = (deque(), deque())
        self._left = [0.0, 0.0]  # seconds alone that the first of each queue still takes
        self._done = [0.0, 0.0]

    def launch(self, stream: Stream, load: Load, size: float = 1.0) -> None:
        """Give a stream something to do behind what it has.

        Args:
            size: of it, in any unit; `done` counts it.
        """
        queue = self._queues[stream]
        queue.append((load, size))
        if len(queue) == 1:
            self._left[stream] = float(load.seconds)

    def busy(self, stream: Stream) -> bool:
        return bool(self._queues[stream])

    def wait(self, stream: Stream) -> None:
        """Let time pass until a stream has nothing left to do."""
        while self.busy(stream):
            self._run(float("inf"))

    def pass_time(self, seconds: float) -> None:
        """Let so much time pass; the streams go on as far as they have something to do."""
        until = self.now + seconds
        while self.now < until and any(self._queues):
            self._run(until - self.now)
        self.now = until

    def done(self, stream: Stream) -> float:
        """Size of what a stream has done since it was last asked."""
        done, self._done[stream] = self._done[stream], 0.0
        return done

    def _run(self, seconds: float) -> None:
        """Run until something ends, or for so many seconds at most."""
        running = [stream for stream in Stream if self.busy(stream)]
        slow = 1.0
        if len(running) > 1:
            first = (self._queues[stream][0][0] for stream in Stream)
            slow = float(self._times.slowdown(*first))
        shortest = min(self._left[stream] for stream in running)
        alone = min(shortest, seconds / slow)
        self.now += alone * slow
        for stream in running:
            queue, left = self._queues[stream], self._left[stream]
            load, size = queue[0]
            self._done[stream] += size * (alone / float(load.seconds) if load.seconds > 0.0 else 1.0)
            self._left[stream] = left - alone
            if left <= alone:
                queue.popleft()
                self._left[stream] = float(queue[0][0].seconds) if queue else 0.0

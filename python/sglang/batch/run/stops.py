"""Signals that end a run: the first lets what runs come to its end, the second does not wait."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Iterable
from typing import TypeVar

REASONS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "the terminal was closed",
}
"""Signals that end a run, and what they mean."""

SHORT_GRACE = 10.0
"""Seconds that requests in flight get at most where somebody else ends the run: spot notices are short."""

STOP_SECONDS = 10.0
"""Seconds that the end of a run waits for what may hang with a broken engine."""

T = TypeVar("T")


class Stopped(Exception):
    """A signal has ended the run.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(REASONS[number])
        self.number = number


class Stops:
    """Signals of this process, from now on, in the event loop that is running.

    Args:
        signals: those that are listened to; none where somebody else calls `stop`.

    Attributes:
        first, second: completed by the first and the second of the REASONS.
    """

    def __init__(self, signals: Iterable[signal.Signals] = tuple(REASONS)) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[signal.Signals] = loop.create_future()
        self.second: asyncio.Future[signal.Signals] = loop.create_future()
        for number in signals:
            loop.add_signal_handler(number, self.stop, number)

    def stop(self, number: signal.Signals) -> None:
        """Take note of a signal, or of what is meant as one."""
        for future in (self.first, self.second):
            if not future.done():
                future.set_result(number)
                return

    def grace(self, seconds: float) -> float:
        """Tell how many seconds requests in flight get after the first signal, of those the user grants."""
        return seconds if self.first.result() is signal.SIGINT else min(seconds, SHORT_GRACE)

    async def race(self, work: Awaitable[T]) -> T:
        """Wait for something that a signal cuts short.

        Raises:
            Stopped: there was a signal; the work is cancelled.
        """
        task = asyncio.ensure_future(work)
        await asyncio.wait((task, self.first), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait((task,), timeout=STOP_SECONDS)
            raise Stopped(self.first.result())
        return task.result()

"""Clocks: seconds of work on a GPU, by its own events, and on a CPU for trying the kit itself.

Every figure is a median. Rounds are a fixed number, since ranks that reduce together must run as often.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

Work = Callable[[], object]
Streams = tuple[Any, Any]

WARM_UP = 3
"""Runs before the clock counts: kernels compile, libraries choose theirs, clock rates rise."""

GATE_CYCLES = 10_000_000
"""GPU cycles, some milliseconds, for which the GPU waits until the CPU has launched what is timed."""


class Clock(Protocol):
    """Times work on one device."""

    def seconds(self, work: Work, stream: Any = None) -> float:
        """Seconds of `work` alone, on a stream or the current one."""

    def at_once(self, first: Work, second: Work, streams: Streams) -> float:
        """Seconds from when both begin, each on its stream, until both have ended."""


class CudaClock:
    """CUDA events around work that is queued behind a gate, with a second-level cache that holds none of it.

    Args:
        device: of the events.
        rounds: that count.
    """

    def __init__(self, device: torch.device, rounds: int = 20) -> None:
        self._rounds = rounds
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(2 * cache, dtype=torch.int8, device=device)

    def seconds(self, work: Work, stream: Any = None) -> float:
        torch.cuda.synchronize()  # what the work reads may still be written on another stream
        with torch.cuda.stream(stream):  # None leaves the current one
            for _ in range(WARM_UP):
                work()
            spans = [self._span(work) for _ in range(self._rounds)]
        return self._median(spans)

    def at_once(self, first: Work, second: Work, streams: Streams) -> float:
        def both() -> None:
            here = torch.cuda.current_stream()
            for stream, work in zip(streams, (first, second), strict=True):
                stream.wait_stream(here)
                with torch.cuda.stream(stream):
                    work()
            for stream in streams:
                here.wait_stream(stream)

        return self.seconds(both)

    def _span(self, work: Work) -> tuple[Any, Any]:
        self._flush.zero_()
        torch.cuda._sleep(GATE_CYCLES)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        return begin, end

    @staticmethod
    def _median(spans: list[tuple[Any, Any]]) -> float:
        spans[-1][1].synchronize()
        return 1e-3 * statistics.median(begin.elapsed_time(end) for begin, end in spans)


class CpuClock:
    """Wall time, for trying the kit. What should run at once runs one after the other."""

    def __init__(self, rounds: int = 3) -> None:
        self._rounds = rounds

    def seconds(self, work: Work, stream: Any = None) -> float:
        work()
        return statistics.median(self._once(work) for _ in range(self._rounds))

    def at_once(self, first: Work, second: Work, streams: Streams) -> float:
        def both() -> None:
            first()
            second()

        return self.seconds(both)

    @staticmethod
    def _once(work: Work) -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

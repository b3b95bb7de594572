"""The clocks: what CUDA is told, in which order, with stand-ins; and that medians count."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmark.gpu import timing
from benchmark.gpu.timing import WARM_UP, CpuClock, CudaClock


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a CUDA device was told, in order; an event's time is how much work it was told before."""
    log: list[Any] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")
            self.at = float(sum(entry for entry in log if isinstance(entry, int)))

        def elapsed_time(self, end: Any) -> float:
            return float(end.at - self.at)

        def synchronize(self) -> None:
            log.append("wait")

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Any) -> None:
            log.append(f"{self.name} waits for {other.name}")

    def stream(chosen: Any) -> Any:
        if chosen is not None:
            log.append(f"on {chosen.name}")
        return nullcontext()

    here = Stream("here")
    fakes = {
        "Event": Event,
        "stream": stream,
        "synchronize": lambda: log.append("synchronize"),
        "_sleep": lambda cycles: log.append("gate"),
        "current_stream": lambda: here,
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=8),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    buffer = SimpleNamespace(zero_=lambda: log.append("flush"))
    monkeypatch.setattr(timing.torch, "empty", lambda *size, **_: buffer)
    log.append(Stream)
    return log


def test_each_round_is_flushed_and_launched_behind_a_gate_and_the_median_counts(told: list[Any]) -> None:
    told.clear()
    milliseconds = iter([100] * WARM_UP + [9, 2, 4])
    clock = CudaClock(torch.device("cpu"), rounds=3)
    assert clock.seconds(lambda: told.append(next(milliseconds))) == pytest.approx(4e-3)
    one = ["flush", "gate", "event"]
    assert told == [
        "synchronize",
        100,
        100,
        100,
        *one,
        9,
        "event",
        *one,
        2,
        "event",
        *one,
        4,
        "event",
        "wait",
    ]


def test_both_begin_behind_the_same_gate_and_the_clock_stops_after_the_later(told: list[Any]) -> None:
    make = told.pop()
    streams = make("left"), make("right")
    clock = CudaClock(torch.device("cpu"), rounds=1)
    assert clock.at_once(lambda: told.append(3), lambda: told.append(5), streams) == pytest.approx(8e-3)
    last = told.index("gate")
    assert told[last:] == [
        *("gate", "event"),
        *("left waits for here", "on left", 3),
        *("right waits for here", "on right", 5),
        *("here waits for left", "here waits for right", "event", "wait"),
    ]


def test_the_cpu_clock_takes_a_median_of_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 5.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    runs: list[int] = []
    assert CpuClock(3).at_once(lambda: runs.append(1), lambda: runs.append(2), (None, None)) == 2.0
    assert runs == [1, 2] * 4

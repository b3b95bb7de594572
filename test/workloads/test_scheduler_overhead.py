"""What the sampler of `benchmark.scheduler_overhead` counts."""

import sys
from itertools import count

import pytest
from benchmark import scheduler_overhead


def frame_in(path, name="f"):
    """The frame of a function that a file of this path defines."""
    space = {"sys": sys}
    exec(compile(f"def {name}():\n    return sys._getframe()", path, "exec"), space)
    return space[name]()


@pytest.mark.parametrize(
    ("path", "hits"),
    [("/x/sglang/srt/blend/core/planner.py", 1), ("/x/sglang/srt/managers/scheduler.py", 0)],
)
def test_a_look_is_counted_with_the_time_it_takes(monkeypatch, path, hits):
    """Steps are reported without that time: it is no overhead of the policy."""
    clock = count()  # each reading is a second later
    monkeypatch.setattr(scheduler_overhead.time, "thread_time", lambda: float(next(clock)))
    samples = scheduler_overhead._Samples("/sglang/srt/blend/")
    for _ in range(3):
        samples.take(0, frame_in(path))
    assert samples.count().tolist() == [3 * hits, 3, 3.0]

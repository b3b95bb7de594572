"""Compile the kernels before the first request needs them."""

from __future__ import annotations

import numpy as np

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.core.order.judge import Judge
from sglang.srt.blend.core.order.plan import PlannerOptions
from sglang.srt.blend.core.order.samples import SHORT_CAP
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.step.leaders import PrefixLeaders
from sglang.srt.blend.core.step.step import Running, Step, StepLimits


def compile_kernels(cost_model: CostModel, times: StepTimeModel | None = None) -> None:
    """Drive a throw-away planner through everything that a scheduler calls, so that it is compiled.

    Numba compiles on first use: some 15 seconds of CPU after installation, half a second when its cache
    is warm. A server does that while it starts rather than under a request.

    Args:
        times: step times, where orders will be judged by them.
    """
    planner = Planner(cost_model, kv_capacity=64, options=PlannerOptions(sample_fraction=0.5))
    prompts = np.array([1, 2, 3, 1, 2, 4, 5, 6], np.int32)
    offsets = np.array([0, 3, 6, 8], np.int64)
    for _ in range(2):  # the second arrival is merged into the first's order
        planner.add(prompts, offsets, max_new_tokens=np.full(3, 2 * SHORT_CAP))
        planner.replan()
    first, second, third, fourth = planner.propose(4)
    leaders = PrefixLeaders(planner.table)
    leaders.lead(first)
    leaders.followers([second], second, leaders.shared(second, 0))
    planner.admit(first)
    room = _step(planner, third, beside=first, generated=1)._room
    assert room is not None
    room.longest(1)
    room.longest_visit(1)
    _step(planner, fourth, beside=first, generated=2 * SHORT_CAP - 1)
    planner.observe(first, 9)
    planner.remove(first)
    planner.admit(second)
    planner.retract(second)
    planner.remove(second)
    planner.replan()
    _ = planner.state
    index = planner.ledger.index
    lo, hi = index.narrow(*index.root(0), 0, prompts[:1])
    index.totals(lo, hi)
    index.used_sooner(lo, hi, 0, prompts[:2], index.next_use(lo, hi), 1)
    index.next_use_many(np.array([lo]), np.array([hi]))
    if times is not None:
        judged = Planner(cost_model, kv_capacity=64, judge=Judge(times, "mixed", 64))
        judged.add(prompts, offsets, max_new_tokens=np.full(3, 8), known_output=np.array([8, 2, 5]))
        judged.replan()


def _step(planner: Planner, slot: int, *, beside: int, generated: int) -> Step:
    """A step in which a request begins beside one that has generated so much."""
    step = planner.begin_step(Running(np.array([beside]), np.array([generated])), 1, StepLimits())
    step.admitted(step.consider(slot, 1), prefill_tokens=1, shared_tokens=0)
    return step

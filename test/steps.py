"""Planners of a few requests, and their steps."""

import numpy as np

from pools import llama_on_a100, planner_for
from sglang.srt.blend.core.cost.pdmux import PdmuxConfig, PdmuxTimes
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.core.pool.request_table import State
from sglang.srt.blend.core.step.batch_pacing import BatchPacer
from sglang.srt.blend.core.step.pacing import Pacer
from sglang.srt.blend.core.step.step import Running, StepLimits
from sglang.srt.blend.core.step.step_maker import StepMaker


def planner_of(requests, *, kv_capacity=1000, paced="", **options):
    """A planner without samples; `paced` names the engine whose prefill has a quota."""
    planner = planner_for(requests, kv_capacity=kv_capacity, sample_fraction=0.0, **options)
    if paced:
        cost = llama_on_a100()
        times = StepTimeModel(cost.shape, cost.hardware)
        divided = paced == "pdmux"
        pacer = batch_pacer(times, kv_capacity) if divided else Pacer(times, paced, kv_capacity=kv_capacity)
        planner._steps = StepMaker(planner.ledger, pacer)
    return planner


def batch_pacer(times, kv_capacity):
    """The pacer of a GPU that is divided as SGLang does it by itself."""
    return BatchPacer(PdmuxTimes(times), PdmuxConfig.of(times.hardware), kv_capacity=kv_capacity)


def begin(planner, *, used=None, choose=None, **limits):
    """The next step, with everybody running who was admitted; by default each holds its tokens alone.

    With `max_proposals=0` the plan proposes nobody, and each request is on the side of its own density.
    """
    table = planner.table
    slots = np.flatnonzero(table.state == State.RUNNING)
    held = int((table.store.length[slots] + table.generated[slots]).sum()) if used is None else used
    first = np.flatnonzero(table.state == State.WAITING)
    return planner.begin_step(
        Running(slots, table.generated[slots]),
        held,
        StepLimits(**limits),
        first=int(first[0]) if len(first) else None,
        choose=choose,
    )


def consider(step, planner, slot, **kwargs):
    """Decide about a request of which nothing is cached."""
    return step.consider(slot, int(planner.table.store.length[slot]), **kwargs)


def admit(step, planner, slot):
    decision = consider(step, planner, slot)
    assert decision.admits, decision
    step.admitted(decision, prefill_tokens=decision.new_tokens, shared_tokens=0)


def outcome(decision):
    return decision.verdict, decision.reason

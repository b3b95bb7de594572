"""Warming up: what a scheduler calls afterwards is compiled already."""

import gc

import numpy as np
from numba.core.dispatcher import Dispatcher

from pools import llama_on_a100, mixed_pool
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.core.order.judge import Judge
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.warm_up import compile_kernels


def compiled():
    """Number of compiled signatures of each of our kernels."""
    kernels = [x for x in gc.get_objects() if isinstance(x, Dispatcher)]
    return {
        f"{k.py_func.__module__}.{k.py_func.__name__}": len(k.signatures)
        for k in kernels
        if k.py_func.__module__.startswith("sglang.")
    }


def test_a_planner_at_work_compiles_nothing_after_the_warm_up():
    compile_kernels(llama_on_a100())
    before = compiled()
    assert before
    planner = Planner(llama_on_a100(), kv_capacity=100_000)
    mixed_pool(0, 60).add_to(planner)
    planner.replan()
    slots = planner.propose(8)
    for slot in slots:
        planner.admit(slot, shared_tokens=0)
    planner.ledger.progress(np.array(slots), np.full(len(slots), 3))
    for slot in slots:
        planner.observe(slot, 3)
        planner.remove(slot)
    mixed_pool(1, 20).add_to(planner)
    planner.refresh()
    planner.replan()
    planner.ledger.index.totals(0, 3)
    assert planner.state.partition.total > 0
    assert compiled() == before


def test_a_planner_with_a_judge_compiles_nothing_either():
    cost = llama_on_a100()
    times = StepTimeModel(cost.shape, cost.hardware)
    compile_kernels(cost, times)
    before = compiled()
    planner = Planner(cost, kv_capacity=100_000, judge=Judge(times, "overlapped", 2048))
    slots = mixed_pool(0, 60).add_to(planner)
    planner.replan()
    for slot in slots[:8].tolist():
        planner.admit(slot, shared_tokens=0)
    planner.replan()
    assert compiled() == before

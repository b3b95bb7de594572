"""Large pools are planned beside the steps: which step takes a plan, and of whom it still holds."""

import threading

import numpy as np
import pytest

from pools import planner_for, random_pool
from sglang.srt.blend.core.order import replanning
from sglang.srt.blend.core.order.aside import PlanAside
from sglang.srt.blend.core.step.step import Running, StepLimits


def step(planner):
    running = np.flatnonzero(planner.table.state == 2)
    return planner.begin_step(Running(running, planner.table.generated[running]), 0, StepLimits())


@pytest.fixture
def planner(monkeypatch):
    """40 requests wait behind a first plan, which the next step finds stale."""
    monkeypatch.setattr(replanning, "LARGE", 1)
    planner = planner_for(kv_capacity=5000)
    random_pool(0, 40, longest=30).add_to(planner)
    step(planner)
    planner._plans.costs_changed(None)
    return planner


def test_the_first_plan_is_made_in_its_step(planner):
    assert len(planner.order) == 40
    assert planner.ledger.scanner.num_waiting == 40


def test_steps_follow_the_old_plan_until_the_new_one_is_due(planner):
    old = planner.order.tolist()
    random_pool(1, 5, longest=30).add_to(planner)
    step(planner)
    assert planner.replans == 2
    assert planner.order.tolist() == old
    step(planner)
    assert planner.order.tolist() == old
    step(planner)
    assert len(planner.order) == 45
    assert planner.replans == 2


def test_the_plan_is_the_one_that_a_step_would_have_made(planner):
    step(planner)
    planner._plans._aside.take(10**9)
    planner.replan()
    expected = planner.order.tolist()
    planner._plans.costs_changed(None)
    for _ in range(3):
        step(planner)
    assert planner.order.tolist() == expected


def test_whoever_began_or_left_meanwhile_is_not_in_it(planner):
    step(planner)
    begun, gone = planner.order[:2].tolist()
    planner.admit(begun)
    planner.remove(gone)
    planner.refresh()  # which frees its slot
    newcomer = random_pool(2, 1, longest=30).add_to(planner).item()
    assert newcomer == gone  # another request in a slot that the plan knows
    step(planner)
    step(planner)
    assert not planner._plans._aside.making
    assert len(planner.order) == 38
    assert not {begun, newcomer} & set(planner.order.tolist())
    planner.ledger._check()


def test_a_plan_made_in_a_step_replaces_it(planner):
    step(planner)
    assert planner._plans._aside.making
    planner.replan()
    assert not planner._plans._aside.making


def test_one_that_is_late_is_waited_for():
    aside, ready = PlanAside(), threading.Event()
    aside.begin(lambda: ready.wait() and "plan", requests=25_000, step=10)
    assert aside.take(13) is None
    threading.Timer(0.05, ready.set).start()
    assert aside.take(14) == "plan"
    assert not aside.making
    assert aside.take(15) is None

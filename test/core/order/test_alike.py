"""Requests of which no order is better than another go in order of arrival."""

import numpy as np
import pytest

from pools import planner_for, pool
from sglang.srt.blend.core.step.dual_scan import Side
from sglang.srt.blend.core.step.step import Running, StepLimits


def alike(n=200, **options):
    """Prompts of about 300 tokens, nothing known of their answers, in random order."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 1000, rng.integers(290, 310)) for _ in range(n)]
    return planner_for(pool(prompts, 400, known=False), kv_capacity=20_000, **options)


def test_requests_that_are_all_alike_go_in_order_of_arrival():
    planner = alike(sample_fraction=0.0)
    assert planner.plan().slots.tolist() == list(range(200))
    assert planner.propose(50) == list(range(50))
    planner.admit(0)
    assert planner.propose(50) == list(range(1, 51))


def test_requests_in_one_line_wait_on_one_side():
    """Otherwise later ones would pass one that does not fit for as long as they keep the room for it."""
    planner = alike(sample_fraction=0.0)
    planner.replan()
    running = Running(np.zeros(0, np.int64), np.zeros(0, np.int64))
    step = planner.begin_step(running, 0, StepLimits())
    assert step.proposals[:3] == [0, 1, 2]
    assert {planner.ledger.side(slot) for slot in step.proposals} == {Side.COMPUTE}


@pytest.mark.parametrize("unlike", ["length", "prompt", "sharing"])
def test_requests_of_which_some_are_unlike_go_by_density(unlike):
    planner = alike(sample_fraction=0.0)
    half = np.arange(0, 200, 2)
    if unlike == "length":
        planner.table.known[half] = planner.table.estimate[half] = 4_000
    if unlike == "prompt":
        planner = planner_for(
            pool([np.arange(3_000 if i % 2 else 30) + 7 * i for i in range(200)], 400, known=False),
            kv_capacity=20_000,
            sample_fraction=0.0,
        )
    if unlike == "sharing":
        prompts = [np.concatenate([np.full(290, i % 5), [i]]) for i in range(200)]
        planner = planner_for(pool(prompts, 400, known=False), kv_capacity=20_000, sample_fraction=0.0)
    assert planner.plan().slots.tolist() != list(range(200))

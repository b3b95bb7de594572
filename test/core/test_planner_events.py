"""The planner's counters, index, accounts and order against a recount, through any order of events."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pools import planner_for, random_pool
from sglang.srt.blend.core.order import replanning
from sglang.srt.blend.core.pool.pending_index import NEVER
from sglang.srt.blend.core.step.step import Running, StepLimits

seeds = st.integers(0, 10**6)


class Recount:
    """The planner's truth, kept the slow way."""

    def __init__(self, planner):
        self.planner = planner
        self.prompt, self.state, self.namespace = {}, {}, {}

    def of(self, state):
        return [slot for slot, s in self.state.items() if s == state]

    def check(self):
        planner = self.planner
        waiting, running = self.of("waiting"), self.of("running")
        assert planner.table.num_waiting == len(waiting)
        assert planner.table.waiting_tokens == sum(
            len(self.prompt[s]) + planner.table.estimate[s] for s in waiting
        )
        assert planner.table.running_tokens == sum(
            len(self.prompt[s]) + planner.table.estimate[s] for s in running
        )
        planner.ledger._check()
        proposed = planner.propose(10_000)
        assert len(proposed) == len(set(proposed))
        assert set(proposed) <= set(waiting)

    def check_index(self, prefix, namespace):
        """After a refresh: every annotation below a prefix against brute force."""
        planner, cost = self.planner, self.planner.cost_model
        planner.refresh()
        lo, hi = planner.ledger.index.narrow(
            *planner.ledger.index.root(namespace), 0, np.array(prefix, np.int64)
        )
        below = [
            s
            for s in self.of("waiting")
            if self.namespace[s] == namespace and self.prompt[s][: len(prefix)] == prefix
        ]
        totals = planner.ledger.index.totals(lo, hi)
        assert totals.requests == len(below)
        length = np.array([len(self.prompt[s]) for s in below], np.int64)
        output = planner.table.estimate[below]
        assert totals.comp == pytest.approx(cost.comp(length, output).sum(), rel=1e-9)
        assert totals.mem == pytest.approx(cost.mem(length, output).sum(), rel=1e-9)
        order = planner._plans.window.slots.tolist() if planner._plans.window else []
        position = {s: i for i, s in enumerate(order) if planner.table.plan_position[s] == i}
        assert totals.next_use == min((position.get(s, NEVER - 1) for s in below), default=NEVER)
        assert planner.ledger.index.next_use_many(np.array([lo]), np.array([hi])).tolist() == [
            totals.next_use
        ]
        assert all(lo <= planner.ledger.index.rank(s) < hi for s in below)

    def check_sorted(self):
        """The merged order equals sorting from scratch."""
        planner = self.planner
        planner.refresh()
        present = [s for s in range(planner.table.store.num_slots) if planner.table.state[s] != 0]
        prompts = planner.pool.prompts
        assert sorted(prompts.slots.tolist()) == present
        prompts._check(planner.table.store, planner.table.space)
        for s, prompt in self.prompt.items():
            assert planner.table.store.prompt(s).tolist() == prompt


@settings(max_examples=25)
@given(seeds, st.sampled_from([0, 3, 8192]), st.sampled_from([0, 5]), st.sampled_from([0, replanning.LARGE]))
def test_counters_index_and_order_equal_a_recount_after_random_events(seed, memory, window, large):
    with mock.patch.object(replanning, "LARGE", large):
        random_events(np.random.default_rng(seed), memory, window)


def random_events(rng, memory, window):
    planner = planner_for(
        kv_capacity=int(rng.integers(1, 20_000)), memory=memory, window=window, sample_fraction=0.1
    )
    truth = Recount(planner)
    for _ in range(120):
        event = rng.choice(
            ["add", "admit", "propose", "retract", "abort", "finish", "progress", "replan", "step"]
        )
        waiting, running = truth.of("waiting"), truth.of("running")
        if event == "add":
            n = int(rng.integers(0, 6))
            new = random_pool(int(rng.integers(10**6)), n, longest=5, known=bool(rng.integers(2)))
            new.namespace[:] = rng.integers(0, 3, n)
            for slot, prompt, namespace in zip(
                new.add_to(planner).tolist(), new.prompts, new.namespace.tolist(), strict=True
            ):
                assert slot not in truth.state
                truth.prompt[slot], truth.namespace[slot] = prompt.tolist(), namespace
                truth.state[slot] = "waiting"
        elif event == "propose":
            for slot in planner.propose(3):
                planner.admit(slot, int(rng.integers(0, 3)))
                truth.state[slot] = "running"
        elif event == "admit" and waiting:
            slot = int(rng.choice(waiting))
            planner.admit(slot)
            truth.state[slot] = "running"
        elif event == "retract" and running:
            slot = int(rng.choice(running))
            planner.retract(slot)
            truth.state[slot] = "waiting"
        elif event == "progress" and running:
            slots = rng.choice(list(truth.state), min(3, len(truth.state)), replace=False)
            planner.ledger.progress(slots, rng.integers(0, 3000, len(slots)))
        elif event == "step":
            slots = np.array(running, np.int64)
            planner.begin_step(Running(slots, planner.table.generated[slots]), 0, StepLimits())
        elif event == "replan":
            planner.replan()
            assert not planner.stale or not waiting or planner.table.num_waiting == 0
        elif event in ("abort", "finish") and truth.state:
            slot = int(rng.choice(running if event == "finish" and running else list(truth.state)))
            if event == "finish":
                planner.observe(slot, int(rng.integers(0, 500)))
            planner.remove(slot)
            del truth.state[slot], truth.prompt[slot], truth.namespace[slot]
        truth.check()
        if rng.random() < 0.3:
            truth.check_index(rng.integers(0, 3, rng.integers(0, 4)).tolist(), int(rng.integers(0, 3)))
            truth.check_sorted()
        for slot in truth.state:
            assert 1 <= planner.table.expected(slot) <= planner.table.max_new[slot]

"""Annotations inside SGLang's own scheduler, through thousands of steps of a server that is too small.

Random arrivals, aborts, retractions, flushes, chunked prefills; after every turn of the event loop each
cached node's annotation is recounted from the scheduler's own waiting queue, and upstream's leak checks
must stay silent to the end.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import LoneScheduler, lone_scheduler
from sglang.srt.blend.core.pool.pending_index import NEVER
from sglang.srt.blend.runtime.radix.annotations import Annotation
from sglang.srt.blend.runtime.radix.cache import annotated_core
from sglang.srt.managers import scheduler as scheduler_module
from sglang.srt.managers.io_struct import GetInternalStateReq

KV_TOKENS = 480
KEYS: list[dict[str, str]] = [{}, {}, {"extra_key": "tenant"}, {"cache_salt": "salt"}]


class Recount:
    """Annotations from first principles: the waiting queue, token by token, and the latest plan.

    The plan's numbers (positions, and the lifetime costs of requests as estimated then) are read when
    the planner hands them to its index; who waits, and below which node, is counted here.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.core = annotated_core(scheduler.tree_cache)
        assert self.core is not None
        self.pool = scheduler.blend.pool
        self.cost_model = scheduler.blend.planner.cost_model
        self.planned: dict[int, tuple[int, float, float]] = {}  # slot: position, Comp, Mem
        index = scheduler.blend.planner.ledger.index
        rebuild = index.rebuild

        def note_plan(store: Any, space: Any, order: Any, **arrays: Any) -> None:
            columns = (arrays[name].tolist() for name in ("position", "comp", "mem"))
            self.planned = dict(zip(order.tolist(), zip(*columns, strict=True), strict=True))
            rebuild(store, space, order, **arrays)

        index.rebuild = note_plan

    def check(self) -> Counter[str]:
        """Compare every node; what was seen."""
        seen: Counter[str] = Counter()
        waiting = [
            (req.extra_key, req.cache_salt, tuple(req.origin_input_ids), self.planned[slot])
            for req in self.scheduler.waiting_queue
            if (slot := self.pool.slot(req)) in self.planned
        ]
        stack = [(child, (), waiting) for child in self.core.root_node.children.values()]
        while stack:
            node, above, candidates = stack.pop()
            path = above + tuple(node.key.raw_token_ids())
            key = (node.key.extra_key, node.key.cache_salt)
            users = [user for user in candidates if user[:2] == key and user[2][: len(path)] == path]
            found, expected = self.core.annotation(node.id), self.expected(len(above), len(path), users)
            assert found.requests == expected.requests, path
            assert found.next_use == expected.next_use, path
            assert found.saved_comp == pytest.approx(expected.saved_comp, rel=1e-9, abs=1e-15)
            assert found.density == pytest.approx(expected.density, rel=1e-6, abs=1e-9)
            seen["nodes"] += 1
            seen["used"] += bool(users)
            seen["shared"] += len(users) > 1
            stack += [(child, path, users) for child in node.children.values()]
        return seen

    def expected(self, start: int, end: int, users: list[Any]) -> Annotation:
        if not users:
            return Annotation(0, 0.0, 0.0, NEVER)
        positions, comps, mems = zip(*(user[3] for user in users), strict=True)
        path = float(self.cost_model.prefix_comp(end))
        saved = len(users) * (path - float(self.cost_model.prefix_comp(start)))
        remaining = max(0.0, float(np.sum(comps)) - len(users) * path)
        return Annotation(len(users), saved, remaining / float(np.sum(mems)), min(positions))


class Traffic:
    """Random requests: a few long shared prefixes, continuations of earlier prompts, exact repeats."""

    def __init__(self, lone: LoneScheduler, rng: random.Random) -> None:
        self.lone, self.rng = lone, rng
        self.prompts = [self.tokens(rng.randint(20, 90)) for _ in range(5)]
        self.submitted: list[str] = []

    def tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self.rng.choices(range(10, 14), k=count))

    def submit(self) -> None:
        rng = self.rng
        prompt = rng.choice(self.prompts)
        prompt = prompt[: rng.randint(1, len(prompt))] if rng.random() < 0.5 else prompt
        if rng.random() < 0.8:
            prompt = (prompt + self.tokens(rng.randint(1, 30)))[:140]
        if rng.random() < 0.3:
            self.prompts[rng.randrange(len(self.prompts))] = prompt
        output = rng.choice([1, 3, 8, 30, 90])
        rid = self.lone.submit(prompt, output, max_new_tokens=rng.choice([output, 120]), **rng.choice(KEYS))
        self.submitted.append(rid)

    def abort(self) -> None:
        """Abort somebody who may wait, run, or have finished; as a client would that went away."""
        self.lone.abort(self.rng.choice(self.submitted[-40:]))


def stepper(
    lone: LoneScheduler, recount: Recount, totals: Counter[str], epochs: set[int]
) -> Callable[[], None]:
    """One turn of the event loop with every check; counts what was compared."""

    def step_and_check() -> None:
        lone.step()
        totals.update(recount.check())
        epochs.add(lone.scheduler.blend.planner.ledger.index.epoch)
        lone.scheduler.invariant_checker.self_check_during_busy()

    return step_and_check


@pytest.mark.parametrize(
    ("page_size", "overlap", "turns"), [(1, False, 1500), (4, False, 900), (1, True, 900)]
)
def test_annotations_equal_a_recount_through_thousands_of_scheduler_steps(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, page_size: int, overlap: bool, turns: int
) -> None:
    # The forecast leaves room enough that retractions are rare; upstream's own test switch adds some.
    monkeypatch.setattr(scheduler_module, "TEST_RETRACT", True)
    monkeypatch.setattr(scheduler_module, "TEST_RETRACT_INTERVAL", 25)
    rng = random.Random(f"{page_size}/{overlap}")
    with lone_scheduler(
        tiny_llama,
        schedule_policy="blend",
        max_total_tokens=KV_TOKENS,
        page_size=page_size,
        chunked_prefill_size=64,
        max_running_requests=24,
        disable_overlap_schedule=not overlap,
    ) as lone:
        recount, traffic = Recount(lone.scheduler), Traffic(lone, rng)
        totals: Counter[str] = Counter()
        epochs: set[int] = set()
        step_and_check = stepper(lone, recount, totals, epochs)
        for turn in range(turns):
            roll = rng.random()
            if roll < 0.5 and len(lone.scheduler.waiting_queue) < 40:
                for _ in range(rng.randint(1, 6)):
                    traffic.submit()
            elif roll < 0.56 and traffic.submitted:
                traffic.abort()
            step_and_check()
            if turn % 300 == 299:
                lone.abort(every=True)
                while not lone.idle:
                    step_and_check()
                assert lone.flush()
                recount.check()
        lone.run()
        recount.check()
        lone.check_leaks()
        pool = lone.scheduler.blend.pool
        assert set(lone.finished) == set(traffic.submitted)
        assert totals["used"] > 2000
        assert totals["shared"] > 500
        assert pool.retractions > 10
        assert pool.aborts > 10
        assert len(epochs) > 20


def cached_prefixes(lone: LoneScheduler) -> list[dict[str, Any]] | None:
    """As a user gets them, by way of JSON."""
    output = lone.scheduler.get_internal_state(GetInternalStateReq())
    return json.loads(json.dumps(output.internal_state["blend"]["cached_prefixes"]))


def test_the_internal_state_shows_what_waiting_requests_need_of_the_cache(tiny_llama: Path) -> None:
    head = range(10, 70)
    with lone_scheduler(tiny_llama, schedule_policy="blend", max_running_requests=2) as lone:
        for tail in range(100, 112):
            lone.submit((*head, tail), 4)
        while len(lone.scheduler.waiting_queue) != 8:
            lone.step()
        (shown,) = cached_prefixes(lone)
        assert (shown["tokens"], shown["own_tokens"], shown["requests"]) == (60, 60, 8)
        assert shown["saved_seconds"] > 0
        lone.run()
        assert cached_prefixes(lone) == []


def test_the_internal_state_shows_no_prefixes_of_a_cache_without_annotations(tiny_llama: Path) -> None:
    with lone_scheduler(tiny_llama, schedule_policy="blend", disable_radix_cache=True) as lone:
        assert cached_prefixes(lone) is None

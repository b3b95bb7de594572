"""What is done and what is left of a pool add up, whatever the moment."""

import numpy as np
import pytest

from pools import llama_on_a100, pool
from sglang.srt.blend.core.cost.engines import PoolWork, engine_names
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.step.outlook import Outlook, PoolClock, WorkDone
from sglang.srt.blend.core.step.step import Running

COST = llama_on_a100()
CAPACITY = 100_000
PROMPT, OUTPUT, REQUESTS = 2000, 400, 200


class Run:
    """Requests that share nothing, of which some end and one is half way."""

    def __init__(self, *, known: bool = True, requests: int = REQUESTS) -> None:
        self.planner = Planner(COST, kv_capacity=CAPACITY)
        prompts = np.arange(requests * PROMPT, dtype=np.int32).reshape(requests, PROMPT)
        made = pool(list(prompts), OUTPUT, known=known, max_new=None if known else 4 * OUTPUT)
        self.slots = made.add_to(self.planner)
        self.done = WorkDone()
        self.running: list[int] = []

    def begin(self, count: int) -> None:
        for slot in self.slots[:count].tolist():
            self.planner.admit(slot)
            self.done.begins(PROMPT, 0)
            self.running.append(slot)
        self.slots = self.slots[count:]

    def end(self) -> None:
        for slot in self.running:
            self.done.ends(PROMPT, OUTPUT, None)
            self.planner.observe(slot, OUTPUT)
            self.planner.remove(slot)
        self.running = []

    def outlook(self, engine: str, generated: int = 1) -> Outlook:
        clock = PoolClock(StepTimeModel(COST.shape, COST.hardware), engine, CAPACITY)
        slots = np.array(self.running, np.int64)
        return clock.outlook(self.planner.table, self.done, Running(slots, np.full(len(slots), generated)))


@pytest.mark.parametrize("engine", engine_names())
def test_a_pool_takes_what_it_was_said_to_take(engine: str) -> None:
    run = Run()
    before = run.outlook(engine)
    assert before.done == before.compute == before.memory == 0
    run.begin(REQUESTS)
    run.end()
    after = run.outlook(engine)
    assert after.left == 0
    assert after.done == pytest.approx(before.left, rel=0.01)


@pytest.mark.parametrize("engine", engine_names())
def test_done_and_left_of_alike_requests_make_the_whole(engine: str) -> None:
    run = Run()
    whole = run.outlook(engine).left
    run.begin(REQUESTS // 2)
    run.end()
    half = run.outlook(engine)
    assert half.done == pytest.approx(whole / 2, rel=0.05)
    assert half.left == pytest.approx(whole / 2, rel=0.05)


def test_tokens_that_were_generated_are_not_left() -> None:
    run = Run()
    run.begin(10)
    early, late = run.outlook("mixed", generated=1), run.outlook("mixed", generated=OUTPUT - 1)
    assert late.left < early.left
    assert late.done > early.done


def test_the_busier_resource_is_not_shorter_than_the_modelled_time() -> None:
    run = Run()
    run.begin(REQUESTS)
    run.end()
    outlook = run.outlook("overlapped")
    assert max(outlook.compute, outlook.memory) <= outlook.done
    assert min(outlook.compute, outlook.memory) > 0


def test_lengths_that_requests_fix_are_no_estimates() -> None:
    assert Run(known=True).outlook("mixed").estimated == 0.0
    assert Run(known=False).outlook("mixed").estimated == 1.0


def test_answers_are_counted_by_what_was_expected_of_them() -> None:
    done = WorkDone()
    done.ends(10, 5, expected=100)
    done.ends(10, 7, expected=64)
    done.ends(10, 50, expected=None)
    assert done.lengths == {(7, 3): 2}
    assert done.longest == 50


def test_the_last_of_many_unknown_answers_is_expected_to_outlast_the_mean() -> None:
    """So few read little: the passes of the longest answer, of which the caps allow 1,600, decide."""
    unknown, known = Run(known=False, requests=20), Run(known=True, requests=20)
    unknown.planner.table.estimate[unknown.slots] = OUTPUT
    assert unknown.outlook("overlapped").left > 2 * known.outlook("overlapped").left
    assert known.outlook("overlapped").left_high == known.outlook("overlapped").left


def test_answers_that_run_long_raise_what_the_rest_may_take() -> None:
    run = Run(known=False)
    run.begin(10)
    early = run.outlook("overlapped")
    slots = np.array(run.running)
    run.planner.ledger.progress(slots, np.full(len(slots), 3 * OUTPUT))
    run.planner.replan()
    late = run.outlook("overlapped", generated=3 * OUTPUT)
    assert early.left <= early.left_high
    assert early.left < late.left <= late.left_high


def test_a_shared_prefix_takes_room_once() -> None:
    """100 readers of one document: the cache holds it beside all of them, so they decode in as many passes as
    an answer has tokens, not in a hundred times as many."""
    document, output = CAPACITY // 2, 50
    ones = np.ones(100)
    shared = np.where(np.arange(100) == 0, 0, document)
    work = PoolWork.of(document * ones, output * ones, shared)
    assert work.full_passes(CAPACITY) <= output
    assert PoolWork.of(document * ones, output * ones, 0 * ones).full_passes(CAPACITY) > 40 * output
    done = WorkDone()
    for tokens in shared.tolist():
        done.ends(document, output, None, shared=tokens)
    assert done.kv_held == work.kv_held
    assert done.kv_tokens == work.kv_tokens

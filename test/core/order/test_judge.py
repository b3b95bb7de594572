"""What a judge foresees of an order, against passes counted by hand and by the pool's own totals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pools import llama_on_a100, planner_for, pool, random_pool
from sglang.srt.blend.core.cost.engines import load_engine
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork
from sglang.srt.blend.core.order import judge as judging
from sglang.srt.blend.core.order import passes, replanning
from sglang.srt.blend.core.order.judge import Judge
from sglang.srt.blend.core.order.lines import depth_first
from sglang.srt.blend.core.order.plan import PlannerOptions
from sglang.srt.blend.core.order.snapshot import Snapshot
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.step.pacing import Pacer
from sglang.srt.blend.core.step.step import Running, StepLimits

COST = llama_on_a100()
TIMES = StepTimeModel(COST.shape, COST.hardware)


def foreseen(monkeypatch, requests, *, kv_capacity, engine="alternating", chunk=8192, running=()):
    """Of each order that is judged: what strides hold, what they prefill, their passes; and its seconds."""
    foresee, seen = judging.foresee_passes, []

    def watched(*arguments):
        seen.append((*foresee(*arguments), arguments[-1].stride))
        return seen[-1][:2]

    monkeypatch.setattr(judging, "foresee_passes", watched)
    seconds = []

    class Watched(Judge):
        def seconds(self, *arguments):
            seconds.append(super().seconds(*arguments))
            return seconds[-1]

    planner = Planner(COST, kv_capacity=kv_capacity, judge=Watched(TIMES, engine, chunk))
    requests.add_to(planner)
    for slot in running:
        planner.admit(slot)
    planner.replan()
    return seen, seconds


def one_and_another():
    """A question about a document of 50 tokens, another, and a prompt of its own."""
    document = list(range(50))
    return pool([[*document, 100], [*document, 101, 102], [7] * 30], [4, 8, 2])


def test_passes_are_those_that_one_counts_by_hand(monkeypatch):
    seen, seconds = foreseen(monkeypatch, one_and_another(), kv_capacity=1000)
    for use, work, _ in seen:
        assert use[:, passes.ROWS].tolist() == [0, 3, 2, 2, 1, 1, 1, 1]
        # The document is held once, until its last question is answered.
        assert use[:, passes.HELD].tolist() == [86, 89, 59, 61, 57, 58, 59, 60]
        assert work[:, passes.TOKENS].tolist() == [83, 0, 0, 0, 0, 0, 0, 0]
    run = load_engine("alternating")
    use, work, _ = seen[0]
    expected = float(
        run(
            TIMES,
            StepWork(
                prefill_tokens=work[:, passes.TOKENS],
                prefill_pairs=work[:, passes.PAIRS],
                finished_prefills=work[:, passes.PROMPTS],
                decode_rows=use[:, passes.ROWS],
                kv_tokens=use[:, passes.READS],
            ),
        ).sum()
    )
    assert seconds[0] == pytest.approx(expected)


def test_a_document_that_has_left_the_cache_is_computed_again(monkeypatch):
    """In a cache of one document and a little, the prompt of its own goes between its questions or not."""
    requests = pool([[*range(50), 100], [*range(50), 101], [7] * 40], [3, 6, 5])
    seen, _ = foreseen(monkeypatch, requests, kv_capacity=60)
    prefilled = {int(work[:, passes.TOKENS].sum()) for _, work, _ in seen}
    assert prefilled == {92, 142}


def test_shorter_answers_pass_a_long_one_that_does_not_fit(monkeypatch):
    """Two answers of 600 tokens do not fit side by side, but those of 100 fit beside either of them."""
    prompts = [[i] * 8 for i in range(14)] + [[100 + i] * 300 for i in range(60)]
    requests = pool(prompts, [600] * 2 + [100] * 12 + [2] * 60)
    seen, _ = foreseen(monkeypatch, requests, kv_capacity=1000, engine="mixed")
    use, _, stride = seen[0]  # of the density order
    assert use[: 100 // stride, passes.ROWS].mean() > 5
    assert use[:, passes.HELD].max() <= 1000


def test_what_runs_is_in_the_way(monkeypatch):
    alone, _ = foreseen(monkeypatch, one_and_another(), kv_capacity=100)
    beside, _ = foreseen(monkeypatch, one_and_another(), kv_capacity=100, running=[2])
    assert all(len(use) == 8 for use, _, _ in alone)
    assert all(use[0, passes.HELD] >= 31 for use, _, _ in beside)
    assert all(work[:, passes.TOKENS].sum() == 53 for _, work, _ in beside)


@settings(max_examples=40)
@given(
    st.integers(0, 10**6), st.sampled_from(["alternating", "mixed", "overlapped"]), st.integers(100, 40_000)
)
def test_all_is_done_within_the_capacity(seed, engine, kv_capacity):
    requests = random_pool(seed, 25, stretch=3)
    with pytest.MonkeyPatch.context() as monkeypatch:
        seen, seconds = foreseen(monkeypatch, requests, kv_capacity=kv_capacity, engine=engine, chunk=64)
    assert len(seen) >= 4 or not seen
    for (use, work, stride), one in zip(seen, seconds, strict=True):
        # The first token of each answer is its prefill's.
        assert use[:, passes.ROWS].sum() * stride == pytest.approx((requests.output - 1).sum())
        assert work[:, passes.PROMPTS].sum() == len(requests)
        longest = int((requests.lengths + requests.output).max()) + stride
        assert use[:, passes.HELD].max() <= max(kv_capacity, longest)
        assert work[:, passes.TOKENS].max() <= 64 * stride
        assert one > 0.0


class AtOnce(Judge):
    """Foresees an order whose prefill is not spread."""

    paced = False


@pytest.mark.parametrize("engine", ["mixed", "overlapped"])
def test_prefill_that_is_spread_takes_what_it_takes_in_steps(engine):
    """SGLang's scheduler takes 45.7 and 39.7 s, 50.1 and 47.4 s with prefill at once (simulated).

    One who lets prompts take as many passes as there are prompts foresees 55.4 and 48.0 s, 50.8 and 47.5 s.
    """
    lengths = [8 + (37 * i) % 280 + 400 * (i % 16 == 0) for i in range(200)]
    planner = planner_for(pool([[1] * 400 + [2 + i] * 1600 for i in range(200)], lengths), kv_capacity=40_000)
    planner.replan()
    paced, at_once = (planner.foresee(judge(TIMES, engine, 8192)) for judge in (Judge, AtOnce))
    assert paced < 0.95 * at_once


def test_a_long_prompt_decodes_when_all_of_it_is_computed(monkeypatch):
    """It takes 47 passes of 64 tokens, beside one who answers at length."""
    requests = pool([[1] * 10, [2] * 3000], [400, 5])
    for engine in ("alternating", "mixed"):
        seen, _ = foreseen(monkeypatch, requests, kv_capacity=4000, engine=engine, chunk=64)
        for use, _, stride in seen:
            begun = np.flatnonzero(use[:, passes.READS] > 3000) * stride
            assert begun[0] >= 3000 / 64 - stride


class Says:
    """A judge of whom one knows what it says.

    Attributes:
        density, longest, others, at_once: seconds of these orders, and of the best of them without a pace.
    """

    def __init__(self, density, longest, *, others=1000.0, at_once=1000.0, paced=True):
        self.density, self.longest, self.others = density, longest, others
        self.at_once, self.paced = at_once, paced

    def seconds(self, scan, order, tree, requests, kv_capacity, output=None):
        self.output = output
        if not scan.paced:
            return self.at_once
        if not scan.one_line:
            return self.density
        return self.longest if (np.diff(scan.output) <= 0).all() else self.others


@pytest.mark.parametrize(
    ("judge", "one_line", "paced"),
    [
        (None, False, True),
        (Says(100.0, 101.0), False, True),
        (Says(100.0, 99.0), False, True),  # not surely
        (Says(100.0, 97.0), True, True),
        (Says(100.0, 85.0, at_once=84.0), True, True),  # not surely
        (Says(100.0, 85.0, at_once=70.0), True, False),
        (Says(100.0, 101.0, at_once=70.0), False, False),
        (Says(100.0, 101.0, at_once=70.0, paced=False), False, True),
    ],
)
def test_another_order_is_taken_where_it_surely_ends_sooner(judge, one_line, paced):
    planner = Planner(COST, kv_capacity=1000, judge=judge)
    requests = pool([[1] * 40, [2, 2], [3] * 9, [4] * 7], [3, 400, 30, 9])
    slots = requests.add_to(planner)
    planner.replan()
    scan = planner.ledger.scanner.order
    assert (scan.one_line, scan.paced) == (one_line, paced)
    if one_line:
        assert planner.order.tolist() == slots[[1, 2, 3, 0]].tolist()


def guesses(n):
    """So many requests of unknown lengths; every other one may answer at length."""
    return pool([[i] * (10 + 7 * (i % 9)) for i in range(n)], 40, known=False, max_new=[50, 3000] * (n // 2))


def guessing(judge, n):
    """A planner with a plan for so many of them, and their slots."""
    planner = Planner(COST, kv_capacity=3000, judge=judge, options=PlannerOptions(sample_fraction=0.05))
    slots = guesses(n).add_to(planner)
    planner.replan()
    return planner, slots


@pytest.mark.parametrize(("seconds", "one_line"), [(85.0, True), (93.0, False)])
def test_the_mean_of_guesses_is_not_judged_in_a_large_pool(seconds, one_line, monkeypatch):
    """Density is the order until samples have answered, then more has to be won."""
    monkeypatch.setattr(replanning, "LARGE", 300)
    planner, slots = guessing(Says(100.0, seconds, others=seconds), 300)
    assert not planner.ledger.scanner.one_line
    samples = planner._plans.samples.waiting()
    assert samples
    for slot in samples:
        planner.admit(slot)
        planner.replan()
        assert not planner.ledger.scanner.one_line
        planner.observe(slot, 10 + 390 * (slot % 2))  # by cap, so that not all are alike
        planner.remove(slot)
    planner.replan()
    assert planner.ledger.scanner.one_line == one_line
    assert planner.table.num_waiting == len(slots) - len(samples)


@pytest.mark.parametrize(
    ("requests", "seconds", "one_line"),
    [(60, 97.0, True), (60, 99.0, False), (300, 85.0, True), (300, 93.0, False)],
)
def test_what_guesses_may_turn_out_to_be_is_judged(requests, seconds, one_line):
    """Chance decides among a few, so that the surer order is taken."""
    judge = Says(100.0, seconds, others=seconds)
    planner, _ = guessing(judge, requests)
    assert planner.ledger.scanner.one_line == one_line
    assert len(np.unique(judge.output)) > 4


@pytest.mark.parametrize(("seconds", "one_line"), [(97.0, True), (99.0, False)])
def test_a_margin_of_many_is_that_of_a_few_where_nothing_is_paced(seconds, one_line):
    planner, _ = guessing(Says(100.0, seconds, others=seconds, paced=False), 300)
    assert planner.ledger.scanner.one_line == one_line


def test_what_is_left_of_a_pool_is_judged_as_the_pool_was(monkeypatch):
    """Nobody judges by guesses in a large pool; in others the margin stays. The next pool is another one."""
    for large, seconds, one_line in ((300, 50.0, False), (10_000, 93.0, False), (10_000, 85.0, True)):
        monkeypatch.setattr(replanning, "LARGE", large)
        planner, slots = guessing(Says(100.0, seconds, others=seconds), 300)
        for slot in slots[:200].tolist():
            planner.remove(slot)
        planner.replan()
        assert planner.table.num_waiting == 100
        assert planner.ledger.scanner.one_line == one_line
        for slot in slots[200:].tolist():
            planner.remove(slot)
        guesses(60).add_to(planner)
        planner.replan()
        assert planner.ledger.scanner.one_line


def test_a_scenario_is_judged_as_if_its_lengths_came_true():
    """Paced by what is expected, all the same: nobody knows which scenario it is."""
    planner = planner_for(pool([[i] * 200 for i in range(6)], 50), kv_capacity=4000)
    planner.replan()
    window = planner._plans.window
    snapshot = Snapshot.of(planner.pool.prompts, np.ones(6, np.bool_), planner.table)
    tree = snapshot.prompts.tree(snapshot.prompt, snapshot.output, COST)
    judge, order = Judge(TIMES, "alternating", 2048), np.arange(6)
    expected = judge.seconds(window.scan, order, tree, snapshot, 4000)
    assert judge.seconds(window.scan, order, tree, snapshot, 4000, np.full(6, 50)) == expected
    assert judge.seconds(window.scan, order, tree, snapshot, 4000, np.array([50] * 5 + [400])) > 2 * expected


def test_a_lone_long_prompt_follows_the_many_of_whom_one_may_answer_at_length():
    """It needs nearly all of the cache. Whoever answers longest goes on beside it, if the six go first."""
    prompts = [[1] * 1200, *([2] * 200 + [3 + i] * 40 for i in range(6))]
    for judge, place in ((None, 0), (Judge(TIMES, "alternating", 2048), -1)):
        planner = Planner(COST, kv_capacity=1700, judge=judge)
        slots = pool(prompts, 40, known=False, max_new=128).add_to(planner)
        planner.replan()
        assert planner.order[place] == slots[0]


def test_nobody_is_judged_while_others_come():
    planner = Planner(COST, kv_capacity=1000, judge=Says(100.0, 1.0))
    first = pool([[1] * 40, [2, 2], [3] * 9, [4] * 7], [3, 400, 30, 9]).add_to(planner)
    planner.replan()
    assert planner.ledger.scanner.one_line
    planner.admit(first.item(0))
    pool([[5] * 30, [6, 6]], [7, 300]).add_to(planner)
    planner.replan()
    assert not planner.ledger.scanner.one_line
    planner.begin_step(Running(first[:1], np.array([1])), 41, StepLimits())
    planner.replan()  # nobody else has come
    assert planner.ledger.scanner.one_line


@pytest.mark.parametrize("at_once", [70.0, 1000.0])
def test_a_step_is_paced_unless_the_plan_says_otherwise(at_once):
    planner = Planner(
        COST,
        kv_capacity=1000,
        judge=Says(100.0, 101.0, at_once=at_once),
        pacer=Pacer(TIMES, "mixed", kv_capacity=1000),
    )
    slots = pool([[i] * 40 for i in range(40)], [3 + 9 * (i % 7) for i in range(40)]).add_to(planner)
    planner.replan()
    planner.admit(slots.item(0))
    step = planner.begin_step(Running(slots[:1], np.ones(1, np.int64)), 41, StepLimits())
    assert step.paced == (at_once > 100.0)


def test_depth_first_takes_the_subtree_of_the_longest_answers_first():
    planner = planner_for(pool([[1, 1], [1, 2], [2, 1], [2, 2], [3]], [5, 6, 90, 70, 50]), kv_capacity=1000)
    planner.refresh()
    prompts = planner.pool.prompts
    snapshot = Snapshot.of(prompts, np.ones(5, np.bool_), planner.table)
    tree = prompts.tree(snapshot.prompt, snapshot.output, COST)
    assert prompts.slots[depth_first(tree, snapshot.output)].tolist() == [2, 3, 4, 1, 0]

"""The pool joins upstream's requests with the planner's slots through every event."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import numpy as np
import pytest

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.order.plan import PlannerOptions
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.step.step import StepLimits
from sglang.srt.blend.runtime.encoder_cost import EncoderCost, media_tokens
from sglang.srt.blend.runtime.pool import (
    EXPECTED_OUTPUT,
    UNKNOWN,
    RequestPool,
    expected_output,
    known_output,
)
from sglang.srt.blend.runtime.token_ids import fold

LLAMA_8B = ModelShape(gemm_params=7.5e9, weight_bytes=15e9, layers=32, attention_width=4096, kv_bytes=4096)


class FakeRequest(SimpleNamespace):
    """The part of upstream's ``Req`` that the pool reads."""

    __hash__ = object.__hash__

    def finished(self) -> bool:
        return self.finished_reason is not None


def request(prompt: int | list[int], output: int = 100, **fields: object) -> FakeRequest:
    tokens = list(range(10, 10 + prompt)) if isinstance(prompt, int) else prompt
    params = {
        "max_new_tokens": output,
        "min_new_tokens": 0,
        "ignore_eos": True,
        "stop_strs": [],
        "stop_regex_strs": [],
        "json_schema": None,
        "regex": None,
        "ebnf": None,
        "custom_params": None,
        "structural_tag": None,
    }
    params.update({name: fields.pop(name) for name in list(fields) if name in params})
    defaults = {
        "origin_input_ids": array("q", tokens),
        "output_ids": array("q"),
        "sampling_params": SimpleNamespace(**params),
        "extra_key": None,
        "cache_salt": None,
        "multimodal_inputs": None,
        "priority": None,
        "finished_reason": None,
    }
    return FakeRequest(**{**defaults, **fields})


def finish(req: FakeRequest, tokens: int, kind: str = "length") -> None:
    req.output_ids = array("q", [1] * tokens)
    req.finished_reason = SimpleNamespace(to_json=lambda: {"type": kind})


@pytest.fixture
def make_pool():
    def make(capacity: int = 10_000, priority_sign: int = 0, **options: object) -> RequestPool:
        planner = Planner(
            CostModel(LLAMA_8B, load_hardware("a100-80gb")),
            kv_capacity=capacity,
            options=PlannerOptions(**{"sample_fraction": 0.0, **options}),
        )
        return RequestPool(planner, priority_sign=priority_sign)

    return make


def mixed_queue(n: int) -> list[FakeRequest]:
    """Long prompts with short answers and short prompts with long answers, shuffled."""
    rng = np.random.default_rng(0)
    sizes = [(900, 4), (20, 700)] * (n // 2)
    return [
        request(rng.integers(10, 30_000, p).tolist(), d, rid=f"r{i}")
        for i, (p, d) in enumerate(sizes[j] for j in rng.permutation(len(sizes)))
    ]


def admit(pool: RequestPool, queue: list[FakeRequest], reqs: list[FakeRequest]) -> None:
    """What the prefill adder and upstream's filter do."""
    for req in reqs:
        slot = pool.slot(req)
        pool.planner.admit(slot)
        pool.admitted(req, slot, cached_tokens=0)
    queue[:] = [r for r in queue if r not in reqs]


def front(pool, queue, limit):
    """Begin a step, and put its requests in front; how many they are."""
    step = pool.planner.begin_step(
        pool.holders(),
        0,
        StepLimits(max_proposals=limit),
        first=pool.waiting_slot(queue[0]),
        choose=pool.choose,
    )
    pool.bring_to_front(queue, step)
    return len(queue) if step.everything_fits else len(step.proposals)


def test_what_is_proposed_mixes_both_ends(make_pool):
    pool, queue = make_pool(), mixed_queue(200)
    pool.synchronise(queue)
    n = front(pool, queue, 64)
    outputs = {r.sampling_params.max_new_tokens for r in queue[:n]}
    assert outputs == {4, 700}


def test_everything_is_offered_in_order_of_arrival_when_it_fits(make_pool):
    pool, queue = make_pool(capacity=1_000_000), mixed_queue(40)
    arrived = list(queue)
    pool.synchronise(queue)
    assert front(pool, queue, 64) == 40
    assert queue == arrived


def test_a_pool_that_fits_is_measured_once_and_again_when_it_has_doubled(make_pool):
    pool = make_pool(capacity=1_000_000)
    queue = [request([5] * 50 + [100 + i], 4) for i in range(4)]
    pool.synchronise(queue)
    front(pool, queue, 64)
    assert pool.planner.state.sharing_possible == pytest.approx(3 * 50 / (4 * 51))
    assert 0 < pool.planner.state.pool_density < float("inf")
    for late in range(4):
        queue.append(request([5] * 50 + [200 + late], 4))
        pool.synchronise(queue)
        front(pool, queue, 64)
    assert pool.planner.replans == 1
    queue.append(request([5] * 50 + [300], 4))
    pool.synchronise(queue)
    front(pool, queue, 64)
    assert pool.planner.replans == 2
    assert pool.planner.state.sharing_possible == pytest.approx(8 * 50 / (9 * 51))


def test_an_answer_is_reported_and_an_abort_is_not(make_pool):
    pool, queue = make_pool(), mixed_queue(4)
    a, b = queue[:2]
    pool.synchronise(queue)
    front(pool, queue, 4)
    admit(pool, queue, [a, b])
    finish(a, 3)
    finish(b, 3, kind="abort")
    pool.release(a)
    pool.release(b)
    assert (pool.completions, len(pool.running), pool.planner.table.num_waiting) == (1, 0, 2)
    assert pool.slot(a) == pool.slot(b) == UNKNOWN
    assert pool.planner.state.used.total == 0


def test_a_retracted_request_waits_again_under_its_slot(make_pool):
    pool, queue = make_pool(capacity=2000), mixed_queue(20)
    pool.synchronise(queue)
    front(pool, queue, 8)
    req = queue[0]
    admit(pool, queue, [req])
    slot = pool.slot(req)
    req.output_ids = array("q", [1, 2, 3])
    pool.release(req)  # upstream frees the KV, then queues it again
    queue.append(req)
    pool.synchronise(queue)
    assert pool.waiting_slot(req) == slot
    assert (pool.retractions, len(pool.running), pool.planner.table.num_waiting) == (1, 0, 20)


def test_a_request_that_gives_its_kv_back_and_does_not_return_is_forgotten(make_pool):
    pool, queue = make_pool(), mixed_queue(4)
    pool.synchronise(queue)
    front(pool, queue, 4)
    req = queue[0]
    admit(pool, queue, [req])
    pool.release(req)  # aborted while upstream retracted it
    pool.synchronise(queue)
    assert pool.slot(req) == UNKNOWN
    assert pool.planner.state.used.total == 0


def test_a_retracted_request_aborted_before_the_next_prefill_leaves_at_once(make_pool):
    pool, queue = make_pool(), mixed_queue(4)
    pool.synchronise(queue)
    front(pool, queue, 4)
    pool.planner.replan()
    req = queue[0]
    admit(pool, queue, [req])
    slot = pool.slot(req)
    position = pool.planner.ledger.index.rank(slot)
    pool.release(req)  # retracted
    assert pool.planner.ledger.index.totals(position, position + 1).requests == 1
    pool.drop(req)
    assert pool.planner.ledger.index.totals(position, position + 1).requests == 0
    assert (pool.slot(req), pool.aborts, pool.planner.state.used.total) == (UNKNOWN, 1, 0)


def test_aborted_requests_leave_the_plan(make_pool):
    pool, queue = make_pool(), mixed_queue(50)
    pool.synchronise(queue)
    front(pool, queue, 16)
    for req in queue[5:25]:
        pool.drop(req)
    del queue[5:25]
    pool.synchronise(queue)
    n = front(pool, queue, 16)
    assert pool.planner.table.num_waiting == 30
    assert all(pool.waiting_slot(req) != UNKNOWN for req in queue[:n])


def test_a_request_that_vanished_unannounced_leaves_the_plan(make_pool):
    pool, queue = make_pool(), mixed_queue(50)
    pool.synchronise(queue)
    front(pool, queue, 16)
    victim = queue.pop(20)
    pool.synchronise(queue)
    assert pool.planner.table.num_waiting == 49
    assert pool.slot(victim) == UNKNOWN


def test_higher_priority_classes_come_first_and_are_blended_inside(make_pool):
    pool, queue = make_pool(priority_sign=-1), mixed_queue(200)
    for i, req in enumerate(queue):
        req.priority = i % 2
    pool.synchronise(queue)
    n = front(pool, queue, 128)
    assert n == 120  # a sixteenth fewer than in the step before
    assert [r.priority for r in queue[:n]] == [1] * 100 + [0] * 20
    assert {r.sampling_params.max_new_tokens for r in queue[:10]} == {4, 700}


def test_nobody_is_offered_behind_those_of_a_class_that_are_due(make_pool):
    pool, queue = make_pool(priority_sign=-1), mixed_queue(20)
    for i, req in enumerate(queue):
        req.priority = i % 2
    pool.synchronise(queue)
    slots = [pool.slot(req) for req in queue]
    assert pool.choose(8, [slots[4], slots[5], slots[9]]) == [slots[5], slots[9]]
    higher_first = pool.choose(15, [slots[4]])
    assert sorted(higher_first[:10]) == sorted(slots[1::2])
    assert higher_first[10:] == [slots[4]]


def test_requests_that_arrived_after_the_plan_are_offered_in_their_class(make_pool):
    pool, queue = make_pool(priority_sign=1, replan_interval=10**6), mixed_queue(400)
    for req in queue:
        req.priority = 5
    pool.synchronise(queue)
    front(pool, queue, 8)
    late = request([7, 7, 7], 700, priority=0, rid="late")
    queue.append(late)
    pool.synchronise(queue)
    front(pool, queue, 8)
    assert queue[0] is late


def test_with_nothing_running_somebody_is_always_offered(make_pool):
    pool, queue = make_pool(capacity=100), mixed_queue(6)
    pool.synchronise(queue)
    assert front(pool, queue, 4) >= 1


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({}, 100),
        ({"ignore_eos": False}, 0),
        ({"ignore_eos": False, "min_new_tokens": 100}, 100),
        ({"stop_strs": ["\n"]}, 0),
        ({"ignore_eos": False, "min_new_tokens": 100, "stop_strs": ["\n"]}, 0),
        ({"json_schema": "{}"}, 0),
        ({"ignore_eos": False, "output": 1}, 1),
    ],
)
def test_output_lengths_that_a_request_fixes_need_no_sample(fields, known):
    assert known_output(request(5, **fields)) == known


def test_an_expected_length_is_the_plans_until_answers_tell_more_and_no_sample_is_needed(make_pool):
    pool = make_pool(sample_fraction=0.1)
    shared = list(range(200))
    known = {"custom_params": {EXPECTED_OUTPUT: 30, "other": 1}, "ignore_eos": False}
    queue = [request([*shared, i], 400, **known) for i in range(20)]
    queue += [request([7, i], 400, ignore_eos=False) for i in range(20)]
    pool.synchronise(queue)
    pool.planner.replan()
    table = pool.planner.table
    slots = [pool.slot(req) for req in queue]
    assert table.estimate[slots[:20]].tolist() == [30] * 20
    assert all(30 < estimate < 400 for estimate in table.estimate[slots[20:]])
    assert pool.expected == 20
    assert table.sampled[slots[:20]].sum() == 0 < table.sampled[slots[20:]].sum()
    first = queue[0]
    admit(pool, queue, [first])
    finish(first, 90)
    pool.release(first)
    pool.planner.replan()
    assert table.estimate[slots[1:20]].tolist() == pytest.approx([90] * 19, rel=0.15)


@pytest.mark.parametrize(
    "params", [None, {}, {"x": 1}, *({EXPECTED_OUTPUT: v} for v in (0, -3, "9", True, 2.5))]
)
def test_no_usable_word_about_the_length_is_none(params):
    assert expected_output(request(5, custom_params=params)) == 0


def test_prompts_of_different_namespaces_share_nothing(make_pool):
    pool = make_pool()
    queue = [
        request(50, 4, extra_key=key, cache_salt=salt)
        for key, salt in [(None, None), ("lora", None), (None, "s")]
    ]
    pool.synchronise(queue)
    pool.planner.replan()
    assert pool.planner.sharing_ratio == 0
    assert len(pool.namespaces) == 3


def test_wide_ids_fold_equal_to_equal_and_stay_off_the_vocabulary():
    image = 1_000_000 + (0x1234_5678_9ABC_DEF0 & ((1 << 62) - 1))
    folded = fold(array("q", [5, 151_000, image, image, image + 1]))
    assert folded.dtype == np.int32
    assert folded[:2].tolist() == [5, 151_000]
    assert folded[2] == folded[3] >= 2**30
    assert folded[2] != folded[4]


def test_encoder_work_is_read_from_the_vision_config():
    cost = EncoderCost.from_config(
        {
            "vision_config": {
                "depth": 2,
                "embed_dim": 64,
                "hidden_size": 999,
                "mlp_ratio": 2,
                "spatial_merge_size": 2,
            }
        },
        flops=1e9,
    )
    assert cost is not None
    # 2 layers x (4 + 2 x 2) x 64 x 64 parameters, 2 FLOP each, 4 patches for each of 10 tokens
    assert cost.seconds(10) == pytest.approx(2 * 2 * 8 * 64 * 64 * 4 * 10 / 1e9)


def test_a_text_model_has_no_encoder():
    assert EncoderCost.from_config({"hidden_size": 64}, flops=1e9) is None


def test_media_tokens_are_counted_from_their_offsets():
    items = [SimpleNamespace(offsets=[(3, 10), (20, 20)]), SimpleNamespace(offsets=None)]
    assert media_tokens(SimpleNamespace(mm_items=items)) == 9
    assert media_tokens(None) == 0


def test_an_image_makes_its_request_more_compute_intensive(make_pool):
    pool = make_pool()
    pool.encoder = EncoderCost(params=1e9, patches_per_token=4, flops=312e12)
    image = SimpleNamespace(mm_items=[SimpleNamespace(offsets=[(0, 499)])])
    queue = [request(60, 60), request([*range(500, 560)], 60, multimodal_inputs=image)]
    pool.synchronise(queue)
    pool.planner.replan()
    assert pool.planner.order.tolist() == [pool.slot(queue[1]), pool.slot(queue[0])]


def test_a_preemptible_request_is_one_until_it_leaves(make_pool):
    pool, queue = make_pool(), [request(100, 500, rid=f"r{i}") for i in range(3)]
    waiting = list(queue)
    pool.synchronise(queue)
    admit(pool, queue, waiting)
    stays, leaves, ends = waiting
    pool.planner.table.preemptible[[pool.slot(req) for req in waiting]] = True
    assert all(pool.is_preemptible(req) for req in waiting)
    finish(ends, 500)
    pool.release(ends)
    pool.release(leaves)
    assert [pool.is_preemptible(req) for req in waiting] == [True, False, False]
    queue.append(leaves)
    pool.synchronise(queue)
    assert not pool.is_preemptible(leaves)
    assert pool.holders().slots.tolist() == [pool.slot(stays)]

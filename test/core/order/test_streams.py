"""Requests that come while others run: what few read yet waits for more readers."""

import numpy as np
import pytest

from pools import llama_on_a100, planner_for, pool
from sglang.srt.blend.core.order.ordering import order_by_density
from sglang.srt.blend.core.step.step import Running, StepLimits
from sglang.srt.blend.core.step.stream import Stream

READERS = (2, 6, 4)


def documents(*, length=600, answer=4):
    """Documents of which so many wait, and four requests that share nothing and answer at length."""
    texts = [np.arange(length) + 10_000 * (number + 1) for number in range(len(READERS))]
    prompts = [
        np.concatenate([text, np.full(10, 7 + reader)])
        for text, count in zip(texts, READERS, strict=True)
        for reader in range(count)
    ]
    prompts += [np.arange(50) + 90_000 + 100 * i for i in range(4)]
    return pool(prompts, [answer] * sum(READERS) + [300] * 4)


def in_order(requests, slots):
    """Readers of each document in the order of `slots`, one number for neighbours; 0 for other requests."""
    of = np.concatenate([np.repeat(READERS, READERS), np.zeros(len(requests) - sum(READERS), np.int64)])
    read = of[slots].tolist()
    return [count for i, count in enumerate(read) if i == 0 or count != read[i - 1]]


@pytest.mark.parametrize(
    ("stream", "longest_cut", "expected"),
    [(False, 100, [2, 4, 6, 0]), (True, 100, [6, 4, 2, 0]), (True, 700, [2, 4, 6, 0])],
)
def test_in_a_stream_the_document_that_most_wait_for_goes_first(stream, longest_cut, expected):
    """The densest one is that of the fewest readers, who would have it computed for themselves alone."""
    requests = documents()
    result = order_by_density(requests.tree(), llama_on_a100(), longest_cut=longest_cut, stream=stream)
    assert in_order(requests, requests.sorted().slots[result.order]) == expected
    assert result.shared_tokens == requests.tree().shared_tokens


def test_below_a_common_instruction_it_is_the_same():
    plain = documents()
    requests = pool([np.concatenate([np.arange(300) + 5, prompt]) for prompt in plain.prompts], plain.output)
    result = order_by_density(requests.tree(), llama_on_a100(), longest_cut=100, stream=True)
    assert in_order(requests, requests.sorted().slots[result.order])[:3] == [6, 4, 2]


@pytest.mark.parametrize(("stream", "expected"), [(False, [0, 2, 4, 6]), (True, [2, 0, 4, 6])])
def test_documents_less_dense_than_all_together_keep_their_places(stream, expected):
    """That of two readers is denser, since few share it, and goes before what is short."""
    requests = documents(answer=3_000)
    result = order_by_density(requests.tree(), llama_on_a100(), longest_cut=100, stream=stream)
    assert in_order(requests, requests.sorted().slots[result.order]) == expected


def test_who_comes_beside_others_who_run_makes_a_stream():
    requests = documents()
    planner = planner_for(requests, kv_capacity=8_000, sample_fraction=0.0)
    planner.replan()
    assert in_order(requests, planner.order) == [2, 4, 6, 0]
    slot = int(planner.order[-1])
    planner.admit(slot)
    running = Running(np.array([slot]), np.array([1]))
    planner.begin_step(running, 60, StepLimits())
    planner.replan()
    assert in_order(requests, planner.order) == [2, 4, 6, 0]
    pool([np.arange(50) + 99_000 + 100 * i for i in range(5)], 300).add_to(planner)
    planner.replan()
    assert in_order(documents(), [slot for slot in planner.order if slot < len(requests)]) == [6, 4, 2, 0]
    for _ in range(3):  # nobody comes for twice as long
        planner.begin_step(running, 60, StepLimits())
    planner.replan()
    assert in_order(documents(), [slot for slot in planner.order if slot < len(requests)]) == [2, 4, 6, 0]


def test_a_retracted_request_is_no_stream():
    planner = planner_for(documents(), kv_capacity=8_000, sample_fraction=0.0)
    planner.replan()
    first, last = planner.order[[0, -1]].tolist()
    planner.admit(first)
    planner.admit(last)
    planner.begin_step(Running(np.array([first, last]), np.array([1, 1])), 700, StepLimits())
    planner.retract(last)
    planner.replan()
    assert not planner.ledger.stream.flows


def test_the_longest_pause_so_far_tells_how_long_others_are_expected():
    stream, came = Stream(), []
    for step in range(60):
        stream.step()
        if step in (0, 10, 15):
            stream.arrived(1, waiting=1, running=step)
        came.append(stream.flows)
    assert came == [10 <= step <= 15 + 20 for step in range(60)]

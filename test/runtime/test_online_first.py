"""How long a request of an online user waits beside a batch that takes all of the engine."""

import random

import pytest

from helpers import LoneScheduler, lone_scheduler
from sglang.batch.run.remote.client import FIRST
from sglang.srt.blend.runtime.priorities import URGENT

CHUNK = 128
MODES = {
    "plain": {},
    "overlap": {"disable_overlap_schedule": False},
    "mixed chunk": {"enable_mixed_chunk": True},
    "low values first": {"schedule_low_priority_values_first": True},
}


def scheduler(checkpoint, **options):
    return lone_scheduler(
        checkpoint,
        schedule_policy="blend",
        enable_priority_scheduling=True,
        default_priority_value=0,
        chunked_prefill_size=CHUNK,
        **options,
    )


def tokens(rng: random.Random, n: int) -> list[int]:
    return [rng.randint(10, 500) for _ in range(n)]


def submit_batch(lone: LoneScheduler, rng: random.Random, n: int) -> None:
    for _ in range(n):
        if rng.random() < 0.6:
            lone.submit(tokens(rng, rng.randint(100, 600)), rng.randint(1, 12), max_new_tokens=256)
        else:
            lone.submit(tokens(rng, 20), rng.randint(80, 160), max_new_tokens=256)


def wait(lone: LoneScheduler, rid: str) -> int:
    """Steps until the one that computes the first of a request."""
    for steps in range(1, 500):
        batch = lone.step()
        if batch is not None and any(req.rid == rid for req in batch.reqs):
            return steps
    raise AssertionError(f"{rid} waits for ever")


@pytest.mark.parametrize("mode", MODES)
def test_it_begins_in_the_step_after_the_prompt_that_is_unfinished(mode, tiny_llama):
    first = -FIRST if mode == "low values first" else FIRST
    with scheduler(tiny_llama, **MODES[mode]) as lone:
        rng = random.Random(1)
        submit_batch(lone, rng, 80)
        asked = 0
        while lone.scheduler.waiting_queue:
            for _ in range(rng.randint(3, 25)):
                lone.step()
            unfinished = lone.scheduler.chunked_req
            left = 0 if unfinished is None else len(unfinished.origin_input_ids) - unfinished.prefix_len
            prompt = tokens(rng, rng.randint(20, 100))
            rid = lone.submit(prompt, 3, max_new_tokens=20, priority=first)
            assert wait(lone, rid) <= -(-left // CHUNK) + 1
            asked += 1
        assert asked >= 8
        lone.run()
        lone.check_leaks()


def test_until_there_is_room_for_it_nobody_else_begins(tiny_llama):
    with scheduler(tiny_llama) as lone:
        rng = random.Random(2)
        submit_batch(lone, rng, 60)
        for _ in range(10):
            lone.step()
        while lone.scheduler.chunked_req is not None:
            lone.step()
        pool = lone.scheduler.policy.pool
        before = pool.admissions
        rid = lone.submit(tokens(rng, 3000), 3, max_new_tokens=20, priority=FIRST)
        assert wait(lone, rid) > 1, "there was room at once"
        assert pool.admissions == before + 1
        lone.run()
        lone.check_leaks()


def test_the_priority_that_goes_first_is_urgent():
    assert FIRST >= URGENT

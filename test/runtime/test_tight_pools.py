"""Pools in which a prompt hardly fits: whatever first come first served answers, blend answers, too.

A prompt that is computed in chunks holds KV and cannot be retracted. Admitted beside answers that then
outgrow the rest of a tiny pool, it once made the scheduler abort them.
"""

import random

import pytest

from helpers import lone_scheduler

MODES = {
    "mixed chunks": {"enable_mixed_chunk": True},
    "mixed chunks, overlap": {"enable_mixed_chunk": True, "disable_overlap_schedule": False},
    "prefill or decode": {},
}


def tight_pool(seed: int) -> tuple[dict[str, int], list[tuple[list[int], int, int, bool]]]:
    """Sizes of a server, and requests: prompt, output tokens, cap, whether the length is known."""
    rng = random.Random(seed)
    page = rng.choice([1, 4])
    capacity = rng.randrange(120, 700) // page * page
    sizes = {
        "max_total_tokens": capacity,
        "page_size": page,
        "chunked_prefill_size": rng.choice([16, 32, 64, 128]),
    }
    requests = []
    for _ in range(rng.randrange(4, 40)):
        if rng.random() < 0.4:
            length, output = rng.randrange(capacity // 2, capacity - 2), rng.choice([1, 2, 4, 20, 30])
        else:
            length, output = rng.randrange(1, 12), rng.randrange(1, 60)
        longest = max(capacity - page - length - 2, 1)
        output, known = min(output, longest), rng.random() < 0.6
        cap = output if known else max(min(output + rng.choice([0, 5, 200]), longest), output)
        requests.append(([rng.randrange(3, 400) for _ in range(length)], output, cap, known))
    return sizes, requests


def aborted(checkpoint, requests, **server_args) -> set[str]:
    with lone_scheduler(checkpoint, **server_args) as lone:
        for i, (tokens, output, cap, known) in enumerate(requests):
            lone.submit(tokens, output, max_new_tokens=cap, rid=f"r{i}", sampling={"ignore_eos": known})
        lone.run(10_000)  # raises if it hangs
        lone.check_leaks()
        assert len(lone.finished) == len(requests)
        return {rid for rid, reason in lone.finished.items() if reason["type"] == "abort"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [1, 17, 19, 21, 105])
def test_nobody_is_aborted_whom_fcfs_answers(tiny_llama, seed, mode):
    sizes, requests = tight_pool(seed)
    fcfs = aborted(tiny_llama, requests, schedule_policy="fcfs", **sizes, **MODES[mode])
    blend = aborted(
        tiny_llama, requests, schedule_policy="blend", blend_hardware="a100-80gb", **sizes, **MODES[mode]
    )
    assert blend <= fcfs


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("chunk", [1024, 2048])
def test_a_small_pool_of_few_long_prefixes_shares_nearly_all_that_can_be_shared(tiny_llama, chunk, overlap):
    """Like the demo: labels with a long prompt in common, six texts with two questions each, and writers.

    All have a system prompt of 24 tokens. The KV cache holds a quarter of the pool.
    """
    rng = random.Random(0)

    def tokens(count):
        return [rng.randrange(3, 400) for _ in range(count)]

    system, labels = tokens(24), tokens(390)
    texts = [tokens(rng.randrange(550, 600)) for _ in range(6)]
    requests = [(system + labels + tokens(rng.randrange(20, 30)), 2, 4) for _ in range(16)]
    requests += [(system + text + tokens(15), rng.randrange(9, 32), 32) for text in texts for _ in range(2)]
    requests += [(system + tokens(rng.randrange(20, 28)), 250, 256) for _ in range(12)]
    rng.shuffle(requests)
    with lone_scheduler(
        tiny_llama,
        schedule_policy="blend",
        blend_hardware="cpu",
        max_total_tokens=4096,
        chunked_prefill_size=chunk,
        disable_overlap_schedule=not overlap,
    ) as lone:
        for prompt, output, cap in requests:
            lone.submit(prompt, output, max_new_tokens=cap)
        lone.run()
        pool = lone.scheduler.blend.pool
        shared = pool.cached_tokens / pool.prompt_tokens
        assert shared >= 0.97 * pool.planner.state.sharing_possible

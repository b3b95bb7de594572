"""Another policy takes over on a live server, and blend goes on afterwards as if it had been there."""

import itertools
import random

import pytest

from helpers import lone_scheduler
from sglang.srt.blend.core.pool.request_table import State

MODES = {
    "plain": {},
    "overlap": {"disable_overlap_schedule": False},
    "mixed": {"enable_mixed_chunk": True},
    "pages": {"page_size": 16},
}
FULL = {"ignore_eos": True}
POLICIES = ("lpm", "dfs-weight", "fcfs", "lof", "blend")


def switch(lone, name, value=1):
    from sglang.srt.managers.io_struct import SetInternalStateReq

    request = SetInternalStateReq(server_args={f"schedule_policy.{name}": value})
    return lone.scheduler.set_internal_state(request).updated


def submit(lone, count=60):
    """Three prompts in four share much; some are longer than a chunk, and lengths are unknown."""
    for i in range(count):
        prompt = [5 + i % 4] * (20 + 60 * (i % 5 == 0)) + [100 + i] * (1 + i % 7)
        lone.submit(prompt, 3 + 11 * (i % 6), max_new_tokens=80)


def check_accounts(lone):
    """The planner and the scheduler agree about who waits and who holds KV."""
    scheduler, pool = lone.scheduler, lone.scheduler.blend.pool
    pool.synchronise(scheduler.waiting_queue)
    table = pool.planner.table
    assert table.num_waiting == len(scheduler.waiting_queue)
    assert all(table.state[pool.slot(req)] == State.WAITING for req in scheduler.waiting_queue)
    running = {req.rid for req in scheduler.running_batch.reqs if not req.finished()}
    if scheduler.chunked_req is not None:
        running.add(scheduler.chunked_req.rid)
    assert running <= {req.rid for req in pool.holding().values()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("every", [1, 7])
def test_everybody_is_answered_whoever_decides(tiny_llama, mode, every):
    tight = {"max_total_tokens": 512, "chunked_prefill_size": 32, "schedule_policy": "blend"}
    with lone_scheduler(tiny_llama, **tight, **MODES[mode]) as lone:
        submit(lone)
        names = itertools.cycle(POLICIES)
        for turn in range(4_000):
            if lone.idle:
                break
            if turn % every == 0:
                assert switch(lone, next(names))
            lone.step()
            lone.check_leaks()
            check_accounts(lone)
        assert lone.idle
        assert [len(lone.outputs[f"r{i}"]) for i in range(60)] == [3 + 11 * (i % 6) for i in range(60)]
        assert {reason["type"] for reason in lone.finished.values()} == {"stop"}
        pool = lone.scheduler.blend.pool
        assert pool.is_empty
        assert (pool.completions, pool.aborts) == (60, 0)


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("seed", [1, 2, 4])
def test_a_prompt_that_blend_began_goes_on_within_what_is_free(tiny_llama, seed, page_size):
    """Upstream's policies would take all of it at once and end the scheduler without memory."""
    rng = random.Random(seed)
    tight = {"max_total_tokens": 400, "chunked_prefill_size": 32, "enable_mixed_chunk": True}
    with lone_scheduler(tiny_llama, schedule_policy="blend", page_size=page_size, **tight) as lone:
        for i in range(30):
            prompt = rng.choice([4, 8, 16, 150, 200])
            lone.submit([3 + i] * prompt, 8 if prompt > 100 else 20 * rng.randint(1, 3), sampling=FULL)
        for _ in range(4_000):
            if lone.idle:
                break
            assert switch(lone, "blend" if lone.scheduler.chunked_req is None else "fcfs")
            lone.step()
        assert lone.idle
        lone.check_leaks()
        assert {reason["type"] for reason in lone.finished.values()} == {"length"}


def test_the_policy_that_was_chosen_decides_and_is_told(tiny_llama):
    """One request runs at a time: the longest answer's first, or in order of arrival."""
    from sglang.srt.managers.io_struct import GetInternalStateReq

    def first_of(name):
        with lone_scheduler(tiny_llama, max_running_requests=1, schedule_policy="blend") as lone:
            assert switch(lone, name)
            for i, output in enumerate((4, 4, 9, 4)):
                lone.submit([10 + i] * 6, output)
            lone.step()
            state = lone.scheduler.get_internal_state(GetInternalStateReq()).internal_state
            assert (state["schedule_policy"], state["blend"]["policy"]) == (name, name)
            first = lone.scheduler.last_batch.reqs[0].rid
            lone.run()
            return first

    assert first_of("lof") == "r2"
    assert first_of("fcfs") == "r0"


def test_lengths_are_learned_while_another_policy_decides(tiny_llama):
    with lone_scheduler(tiny_llama, schedule_policy="blend") as lone:
        assert switch(lone, "fcfs")
        for i in range(12):
            lone.submit([7] * 16 + [20 + i], 5, max_new_tokens=400)
        lone.run()
        assert switch(lone, "blend")
        for i in range(12):
            lone.submit([7] * 16 + [60 + i], 5, max_new_tokens=400)
        lone.step()
        planner = lone.scheduler.blend.planner
        planner.replan()
        waiting_or_running = [
            s for s in range(len(planner.table.state)) if lone.scheduler.blend.pool._requests[s]
        ]
        assert planner.table.estimate[waiting_or_running].max() < 50
        lone.run()


@pytest.mark.parametrize(
    ("name", "value", "flags"),
    [("fcfs", 0, {}), ("lpm", 1, {"enable_priority_scheduling": True}), ("sjf", 1, {})],
)
def test_what_cannot_be_is_refused_and_nothing_changes(tiny_llama, name, value, flags, caplog):
    with lone_scheduler(tiny_llama, schedule_policy="blend", **flags) as lone:
        assert not switch(lone, name, value)
        assert lone.scheduler.policy is lone.scheduler.blend.policy
        assert f"schedule_policy.{name}" in caplog.text


def test_a_server_without_the_planner_cannot_switch(tiny_llama, caplog):
    with lone_scheduler(tiny_llama, schedule_policy="lpm") as lone:
        assert not switch(lone, "blend")
        assert "was not started with --schedule-policy blend" in caplog.text

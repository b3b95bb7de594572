"""The blend policy inside SGLang's own scheduler: every feature keeps working, the batch is blended."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from helpers import LoneScheduler, lone_scheduler

MODES = {
    "plain": {},
    "overlap": {"disable_overlap_schedule": False},
    "mixed chunk": {"enable_mixed_chunk": True},
    "mixed chunk, overlap": {"enable_mixed_chunk": True, "disable_overlap_schedule": False},
    "pages of 4": {"page_size": 4},
    "no radix cache": {"disable_radix_cache": True},
    "no radix cache, overlap": {"disable_radix_cache": True, "disable_overlap_schedule": False},
    "no chunks": {"chunked_prefill_size": -1},
    "eviction chosen by the user": {"radix_eviction_policy": "lfu"},
}


@pytest.fixture(params=MODES, name="mode")
def mode_arguments(request) -> dict[str, object]:
    return MODES[request.param]


def submit_mix(lone: LoneScheduler, n: int, *, seed: int = 0, ignore_eos: bool = False) -> list[str]:
    """Long prompts with short answers and short prompts with long answers; their system prompts share."""
    rng = random.Random(seed)
    rids = []
    for _ in range(n):
        if rng.random() < 0.7:
            prompt, output, cap = [5] * 40 + _tokens(rng, rng.randint(100, 600)), rng.randint(1, 12), 64
        else:
            prompt, output, cap = [7] * 10 + _tokens(rng, rng.randint(5, 20)), rng.randint(80, 160), 256
        rids.append(
            lone.submit(
                prompt,
                output,
                max_new_tokens=output if ignore_eos else cap,
                sampling={"ignore_eos": ignore_eos},
            )
        )
    return rids


def _tokens(rng: random.Random, n: int) -> list[int]:
    return [rng.randint(10, 500) for _ in range(n)]


def numbers(lone: LoneScheduler) -> dict:
    from sglang.srt.managers.io_struct import GetInternalStateReq

    return lone.scheduler.get_internal_state(GetInternalStateReq()).internal_state["blend"]


def test_every_request_is_answered_in_full_in_every_mode(tiny_llama, mode):
    with lone_scheduler(tiny_llama, schedule_policy="blend", **mode) as lone:
        rids = submit_mix(lone, 80)
        fixed = submit_mix(lone, 20, seed=1, ignore_eos=True)
        lone.run()
        lone.check_leaks()
        assert {rid: len(lone.outputs[rid]) for rid in rids + fixed} == {
            rid: lone.output_length[rid] for rid in rids + fixed
        }
        state = numbers(lone)
        assert (state["waiting"], state["running"], state["completions"]) == (0, 0, 100)
        assert state["pool_density"] > 0
        assert state["root_density"] is None  # nothing waits: neither a density nor a partition
        assert state["partition_compute_tokens"] == state["partition_memory_tokens"] == 0
        assert state["outlook"]["left"] == 0
        assert state["outlook"]["done"] > 0
        assert sum(answers for _, _, answers in state["lengths"]) == len(rids)


def test_upstreams_columns_count_what_its_requests_have(tiny_llama, mode, monkeypatch):
    """The pool reads the output of all that decode off a batch; asked one by one they say the same.

    Under overlap the first token of those prefilled last may not be there yet.
    """
    from sglang.srt.blend.runtime.output_counts import OutputCounts
    from sglang.srt.blend.runtime.pool import RequestPool

    by_columns, count, told = RequestPool.holders, OutputCounts.count, []
    monkeypatch.setattr(OutputCounts, "count", lambda *args: told.append(count(*args)) or told[-1])

    def holders(pool, batch=None):
        running, one_by_one = by_columns(pool, batch), by_columns(pool)
        assert running.slots.tolist() == one_by_one.slots.tolist()
        ahead = running.generated - one_by_one.generated
        assert ahead.min(initial=0) == 0
        assert ahead.max(initial=0) <= ("disable_overlap_schedule" in mode)
        return running

    monkeypatch.setattr(RequestPool, "holders", holders)
    with lone_scheduler(tiny_llama, schedule_policy="blend", max_total_tokens=3000, **mode) as lone:
        submit_mix(lone, 80)
        lone.run()
    assert told.count(True) > 20
    assert told.count(False) < 3  # before anything has run


@pytest.mark.parametrize("mode_name", ["plain", "mixed chunk, overlap", "pages of 4", "no radix cache"])
def test_greedy_answers_are_those_of_fcfs(tiny_llama, mode_name):
    answers = []
    for policy in ("fcfs", "blend"):
        with lone_scheduler(tiny_llama, simulated=False, schedule_policy=policy, **MODES[mode_name]) as lone:
            rng = random.Random(3)
            for _ in range(24):
                lone.submit([5] * 40 + _tokens(rng, rng.randint(5, 200)), rng.randint(2, 20))
            lone.run()
            answers.append(lone.outputs)
    assert answers[0] == answers[1]
    assert len({tuple(tokens) for tokens in answers[0].values()}) > 12  # answers depend on the prompts


def test_grammar_and_logprob_requests_are_answered(tiny_llama):
    with lone_scheduler(
        tiny_llama, simulated=False, schedule_policy="blend", skip_tokenizer_init=False
    ) as lone:
        pattern = lone.submit([5] * 30, 12, sampling={"regex": "(yes|no)"})
        logprob = lone.submit([5] * 31, 6, return_logprob=True, logprob_start_len=0)
        rids = submit_mix(lone, 12)
        lone.run()
        text = lone.scheduler.tokenizer.decode(lone.outputs[pattern], skip_special_tokens=True)
        assert text in ("yes", "no")
        assert len(lone.outputs[logprob]) >= 1
        assert set(rids) <= set(lone.finished)


# ---------------------------------------------------------------- blending (issue 2, shown by 3)


@pytest.mark.parametrize("mode_name", ["mixed chunk, overlap", "plain"])
def test_the_admitted_mix_keeps_the_pools_density_and_both_sides_run_together(
    tiny_llama, tmp_path, mode_name
):
    log = tmp_path / "admissions.jsonl"
    with lone_scheduler(
        tiny_llama,
        schedule_policy="blend",
        max_total_tokens=12_000,
        max_running_requests=256,
        blend_admission_log=str(log),
        chunked_prefill_size=2048,  # tokens: enough for the compute side to keep up
        **MODES[mode_name],
    ) as lone:
        submit_mix(lone, 1500, ignore_eos=True)
        lone.run()
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    root = steps[0]["root_density"]
    steady = [s for s in steps if 150 <= s["waiting"] <= 1350]
    admitted = [request for step in steady for request in step["admitted"]]
    density = sum(r["comp"] for r in admitted) / sum(r["mem"] for r in admitted)
    assert len(admitted) > 1000
    assert density == pytest.approx(root, rel=0.2)
    together = [step for step in steady if min(step["used"]) > 0]
    assert len(together) > 0.75 * len(steady)


def test_a_shared_uncached_prefix_is_computed_once(tiny_llama):
    shared = [9] * 200
    with lone_scheduler(tiny_llama, schedule_policy="blend", chunked_prefill_size=4096) as lone:
        rng = random.Random(0)
        own = [_tokens(rng, 20) for _ in range(8)]
        for tokens in own:
            lone.submit(shared + tokens, 4)
        computed, held = 0, []
        while not lone.idle:
            batch = lone.step()
            if batch is not None and batch.forward_mode.is_extend():
                computed += batch.extend_num_tokens
                held.append(len(batch.reqs))
        assert computed == 200 + 8 * 20
        assert held == [1, 7]
        state = numbers(lone)
        assert state["held"] == state["decisions"]["shared_prefix"] == 7
        assert state["decisions"]["nothing_runs"] == 1
        assert state["decisions"]["fits"] == 7


def test_a_shared_uncached_prefix_is_computed_once_under_overlap(tiny_llama):
    with lone_scheduler(
        tiny_llama, schedule_policy="blend", chunked_prefill_size=4096, disable_overlap_schedule=False
    ) as lone:
        rng = random.Random(0)
        for _ in range(8):
            lone.submit([9] * 200 + _tokens(rng, 20), 6)
        computed = 0
        while not lone.idle:
            batch = lone.step()
            if batch is not None and batch.forward_mode.is_extend():
                computed += batch.extend_num_tokens
        assert computed == 200 + 8 * 20


def test_a_long_prompt_that_continues_in_chunks_leads_its_duplicates(tiny_llama):
    with lone_scheduler(tiny_llama, schedule_policy="blend", chunked_prefill_size=128) as lone:
        shared = _tokens(random.Random(1), 300)
        for own in range(6):
            lone.submit([*shared, *[own + 3] * 8], 4)
        computed = 0
        while not lone.idle:
            batch = lone.step()
            if batch is not None and batch.forward_mode.is_extend():
                computed += batch.extend_num_tokens
        assert computed == 300 + 6 * 8


# ---------------------------------------------------------------- memory


def test_unknown_lengths_near_their_cap_cause_few_retractions(tiny_llama):
    with lone_scheduler(tiny_llama, schedule_policy="blend", max_total_tokens=3000) as lone:
        submit_mix(lone, 300)
        lone.run()
        lone.check_leaks()
        assert numbers(lone)["retractions"] <= 15  # 5%


def test_estimated_lengths_admit_more_than_reserving_the_maximum(tiny_llama):
    """Answers of 20 tokens under a cap of 900: a pool that reserved the cap would hold few at a time."""
    most = {}
    for policy in ("fcfs", "blend"):
        with lone_scheduler(
            tiny_llama,
            schedule_policy=policy,
            schedule_conservativeness=3.0,
            max_total_tokens=3000,
            blend_replan_interval=4,
        ) as lone:
            rng = random.Random(0)
            for _ in range(150):
                lone.submit(_tokens(rng, 30), 20, max_new_tokens=900)
            running = 0
            while not lone.idle:
                lone.step()
                running = max(running, len(lone.scheduler.running_batch.reqs))
            most[policy] = running
    assert most["blend"] >= 1.5 * most["fcfs"]


def test_a_request_as_large_as_the_pool_is_served(tiny_llama):
    with lone_scheduler(tiny_llama, schedule_policy="blend", max_total_tokens=1500) as lone:
        submit_mix(lone, 40)
        large = lone.submit(list(range(10, 400)) * 3, 200)
        lone.run()
        assert len(lone.outputs[large]) == 200


def test_forced_retractions_lose_nothing(tiny_llama, monkeypatch):
    monkeypatch.setattr("sglang.srt.managers.scheduler.TEST_RETRACT", True)
    monkeypatch.setattr("sglang.srt.managers.scheduler.TEST_RETRACT_INTERVAL", 7)
    with lone_scheduler(tiny_llama, schedule_policy="blend") as lone:
        rids = submit_mix(lone, 80)
        lone.run()
        lone.check_leaks()
        assert numbers(lone)["retractions"] > 10
        assert [len(lone.outputs[rid]) for rid in rids] == [lone.output_length[rid] for rid in rids]


# ---------------------------------------------------------------- fairness


def test_on_a_trickle_nobody_is_delayed(tiny_llama):
    """What fits is admitted in the step after it came, in order of arrival."""
    with lone_scheduler(tiny_llama, schedule_policy="blend", max_total_tokens=50_000) as lone:
        rng = random.Random(0)
        for _ in range(40):
            rids = [lone.submit(_tokens(rng, 30), rng.choice((2, 60))) for _ in range(rng.randint(0, 2))]
            batch = lone.step()
            assert not lone.scheduler.waiting_queue
            if rids:
                assert [req.rid for req in batch.reqs] == rids


def test_on_a_trickle_nobody_is_delayed_by_a_plan_that_has_run_dry(tiny_llama):
    """Its partition kept half of the memory for a compute side that nobody belongs to any more."""
    with lone_scheduler(
        tiny_llama, schedule_policy="blend", max_total_tokens=2000, chunked_prefill_size=-1
    ) as lone:
        rng = random.Random(0)
        for _ in range(60):
            lone.submit(_tokens(rng, rng.choice((20, 300))), rng.choice((2, 60)), max_new_tokens=64)
        lone.run()
        assert numbers(lone)["replans"] > 0
        for _ in range(6):
            lone.submit(_tokens(rng, 200), 60, max_new_tokens=64)
            lone.step()
            assert not lone.scheduler.waiting_queue


def test_higher_priorities_are_admitted_first(tiny_llama):
    with lone_scheduler(
        tiny_llama, schedule_policy="blend", enable_priority_scheduling=True, default_priority_value=0
    ) as lone:
        rng = random.Random(0)
        rids = [lone.submit(_tokens(rng, 300), 5, rid=f"p{i % 3}-{i}", priority=i % 3) for i in range(60)]
        order: list[str] = []
        while not lone.idle:
            batch = lone.step()
            for req in batch.reqs if batch is not None else ():
                if req.rid not in order:
                    order.append(req.rid)
        classes = [int(rid[1]) for rid in order]
        assert sorted(order) == sorted(rids)
        assert classes == sorted(classes, reverse=True)


def test_a_more_urgent_request_preempts(tiny_llama):
    with lone_scheduler(
        tiny_llama,
        schedule_policy="blend",
        enable_priority_scheduling=True,
        default_priority_value=0,
        max_running_requests=4,
    ) as lone:
        rng = random.Random(0)
        rids = [lone.submit(_tokens(rng, 30), 60, priority=0) for _ in range(8)]
        for _ in range(5):
            lone.step()
        urgent = lone.submit(_tokens(rng, 30), 3, priority=100)
        for _ in range(8):
            lone.step()
        assert urgent in lone.finished
        lone.run()
        lone.check_leaks()
        assert [len(lone.outputs[rid]) for rid in rids] == [60] * 8


def test_aborts_of_waiting_and_running_requests_leave_nothing_behind(tiny_llama, mode):
    with lone_scheduler(tiny_llama, schedule_policy="blend", **mode) as lone:
        rng = random.Random(0)
        rids = submit_mix(lone, 120)
        while not lone.idle:
            lone.step()
            if rng.random() < 0.3:
                lone.abort(rng.choice(rids) + "")
        lone.check_leaks()
        assert set(lone.finished) == set(rids)
        state = numbers(lone)
        assert (state["waiting"], state["running"]) == (0, 0)
        assert state["used_compute_tokens"] == state["used_memory_tokens"] == 0
        assert any(reason["type"] == "abort" for reason in lone.finished.values())
        assert lone.flush()


def test_aborting_everything_empties_the_plan(tiny_llama):
    with lone_scheduler(tiny_llama, schedule_policy="blend") as lone:
        submit_mix(lone, 60)
        for _ in range(5):
            lone.step()
        lone.abort(every=True)
        lone.run()
        submit_mix(lone, 10)
        lone.run()
        assert numbers(lone)["waiting"] == numbers(lone)["running"] == 0


def test_the_queue_is_not_scanned_without_aborts(tiny_llama):
    with lone_scheduler(tiny_llama, schedule_policy="blend") as lone:
        for seed in range(5):
            submit_mix(lone, 60, seed=seed)
            for _ in range(30):
                lone.step()
        lone.run()
        assert numbers(lone)["queue_rebuilds"] == 0


def test_equal_pools_are_admitted_equally(tiny_llama, tmp_path):
    logs = []
    for run in range(2):
        path = tmp_path / f"{run}.jsonl"
        with lone_scheduler(tiny_llama, schedule_policy="blend", blend_admission_log=str(path)) as lone:
            submit_mix(lone, 150)
            lone.run()
            lone.scheduler.blend.log.close()
        logs.append(path.read_text())
    assert logs[0] == logs[1] != ""


# ---------------------------------------------------------------- inert


def test_with_another_policy_nothing_of_ours_is_there(tiny_llama):
    from sglang.srt.managers.schedule_policy import PrefillAdder, SchedulePolicy

    with lone_scheduler(tiny_llama, schedule_policy="fcfs") as lone:
        rid = lone.submit([5] * 40, 4)
        lone.run()
        scheduler = lone.scheduler
        assert not hasattr(scheduler, "blend")
        assert not hasattr(scheduler.tree_cache, "blend_pool")
        assert type(scheduler.policy) is SchedulePolicy
        assert scheduler.get_prefill_adder_class() is PrefillAdder
        assert "Annotated" not in type(scheduler.tree_cache.tree_core).__name__
        with pytest.raises(KeyError):
            numbers(lone)
        assert len(lone.outputs[rid]) == 4


def test_admissions_under_fcfs_are_those_of_an_upstream_without_our_plugin(tiny_llama):
    """The batches of a run with all hooks applied and of one without any, in fresh processes."""
    assert _batches(tiny_llama, plugins=True) == _batches(tiny_llama, plugins=False) != []


def _batches(checkpoint: Path, *, plugins: bool) -> list:
    import subprocess
    import sys

    code = f"""
import json, random, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import helpers
if not {plugins}:
    import sglang.srt.blend.runtime.plugin as plugin, sglang.srt.plugins as plugins
    plugin.ensure_registered = plugins.load_plugins = lambda: None
with helpers.lone_scheduler({str(checkpoint)!r}, schedule_policy="fcfs") as lone:
    rng = random.Random(0)
    for _ in range(60):
        prompt = [5] * 20 + [rng.randint(10, 500) for _ in range(rng.randint(5, 300))]
        lone.submit(prompt, rng.randint(1, 40), max_new_tokens=60)
    batches = []
    while not lone.idle:
        batch = lone.step()
        if batch is not None:
            batches.append([req.rid for req in batch.reqs])
    hooked = hasattr(type(lone.scheduler).init_schedule_policy, "__wrapped__")
    assert hooked == {plugins}
    print("BATCHES" + json.dumps(batches))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.rpartition("BATCHES")[2])


@pytest.mark.parametrize(("engine", "spread"), [("mixed", True), ("alternating", False)])
def test_where_passes_hold_both_prefill_is_spread_over_the_longest_answer(tiny_llama, engine, spread):
    """Short answers would otherwise be gone long before the long ones that they could run beside."""
    mode = MODES["mixed chunk"] if spread else {}
    with lone_scheduler(tiny_llama, schedule_policy="blend", blend_engine=engine, **mode) as lone:
        rng = random.Random(5)
        for _ in range(4):
            lone.submit(_tokens(rng, 8), 600, sampling={"ignore_eos": True})
        short = [
            lone.submit(_tokens(rng, 20), 4, max_new_tokens=4, sampling={"ignore_eos": True})
            for _ in range(200)
        ]
        waiting = set(short)
        last = 0
        while not lone.idle:
            lone.step()
            now = {req.rid for req in lone.scheduler.waiting_queue}
            if waiting - now:
                waiting, last = waiting & now, lone.steps
        lone.check_leaks()
        assert all(len(lone.outputs[rid]) == 4 for rid in short)
        assert (last > 0.6 * 600) == spread


def test_no_watchdog_outlives_a_test(tiny_llama):
    """It would end whoever started the tests; that failed a run of the continuous integration."""
    with lone_scheduler(tiny_llama, schedule_policy="blend") as lone:
        assert lone.scheduler.watchdog.watchdog_timeout > 24 * 3600

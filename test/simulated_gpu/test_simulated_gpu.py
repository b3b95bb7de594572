"""The real scheduler on a device that only tells time: what it must keep, and what must not leak in."""

import json
from pathlib import Path

import numpy as np
import pytest

from models import LLAMA_3_8B
from programs import last_line
from sglang.srt.blend.core.cost.engines import load_engine
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork

HERE = Path(__file__).parent


def run(program: str, *arguments: str, platform: str, **environment: str) -> dict:
    return last_line(HERE / program, *arguments, platform=platform, **environment)


@pytest.fixture(scope="module")
def results() -> dict:
    return run("scenarios.py", "simulated", platform="simulated_gpu")


@pytest.fixture(scope="module")
def config_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config-only")
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B))
    return folder


def llama_3_8b() -> ModelShape:
    return ModelShape.from_config(LLAMA_3_8B)


def test_kv_capacity_is_the_gpus(results, config_folder):
    shape = llama_3_8b()
    free = 0.88 * load_hardware("a100-80gb").memory - shape.weight_bytes
    assert results["whole_gpu"]["kv_capacity"] == int(free // shape.kv_bytes_per_token)


def test_eight_gpus_hold_a_smaller_share_of_the_weights_each_and_are_faster(results):
    one, eight = results["whole_gpu"], results["eight_gpus"]
    assert eight["kv_capacity"] > 8 * one["kv_capacity"]
    assert eight["seconds"] < one["seconds"]


def test_the_clock_is_the_sum_of_modelled_steps(results, config_folder):
    model = StepTimeModel(llama_3_8b(), load_hardware("a100-80gb"))
    result = results["mixed"]
    assert result["seconds"] == pytest.approx(sum(result["step_seconds"]))
    decoding = [i for i, tokens in enumerate(result["prefill_tokens"]) if tokens == 0]
    for i in decoding[::20]:
        work = StepWork(decode_rows=result["decode_rows"][i], kv_tokens=result["kv_tokens"][i])
        assert result["step_seconds"][i] == pytest.approx(float(load_engine("mixed")(model, work)))


def test_no_wall_time_leaks_into_the_clock(results):
    slow, fast = results["slow"], results["mixed"]
    assert slow["finished"] == fast["finished"]
    assert slow["admitted"] == fast["admitted"]
    assert slow["seconds"] == fast["seconds"]


def test_every_token_is_accounted_for(results):
    for name, result in results.items():
        decoded = sum(result["decode_rows"])
        computed = sum(result["prefill_tokens"])
        first_tokens = len(result["finished"])
        if not result["retractions"]:
            assert decoded == result["output_tokens"] - first_tokens, name
            assert computed <= result["prompt_tokens"], name
        assert 0 < max(result["finished"]) <= result["seconds"] * (1 + 1e-9), name


def test_alternating_passes_hold_one_kind_of_work(results):
    steps = np.array([results["alternating"]["prefill_tokens"], results["alternating"]["decode_rows"]])
    assert not np.any(np.all(steps > 0, axis=0))
    mixed = np.array([results["mixed"]["prefill_tokens"], results["mixed"]["decode_rows"]])
    assert np.any(np.all(mixed > 0, axis=0))


def test_overlap_only_changes_the_time_of_a_step(results):
    assert results["overlapped"]["admitted"] == results["mixed"]["admitted"]
    assert results["overlapped"]["seconds"] < results["mixed"]["seconds"]


def test_blend_reaches_the_sharing_that_is_possible_where_upstream_computes_prefixes_twice(results):
    possible = 36 * 60 / 3400  # four groups of ten, 60 of their 80 tokens in common; 20 others have 10 each
    assert results["blend_known"]["sharing"] == pytest.approx(possible)
    assert results["blend"]["sharing"] > 0.95 * possible  # samples run first, in no such order
    assert results["dfs"]["sharing"] < possible  # neighbours in one pass cannot see each other's KV


def test_a_hidden_length_ends_the_answer_and_a_known_one_is_used(results):
    """`simulate` raises unless every answer has its length; with known lengths nobody is retracted."""
    assert results["blend"]["output_tokens"] == results["blend_known"]["output_tokens"]
    assert results["blend_known"]["retractions"] == 0


def test_requests_that_lose_their_kv_are_answered_in_full(results):
    assert results["cramped"]["retractions"] > 0
    assert sum(results["cramped"]["prefill_tokens"]) > sum(results["mixed"]["prefill_tokens"])


def test_simulated_and_real_runs_admit_the_same_requests_in_the_same_order(results):
    real = run("scenarios.py", "real", platform="portable_cpu")
    assert real["fcfs"] == results["fcfs_tiny"]["admitted"]
    assert real["blend"] == results["blend_tiny"]["admitted"]


def test_a_paced_prompt_in_chunks_goes_on_when_nothing_else_runs(results):
    """A pass with no decode rows hides less than one tile of rows; it must take a chunk all the same."""
    assert sum(results["blend_long_prompts"]["prefill_tokens"]) == 1900 + 1900 + 900


def test_an_answer_that_outlasts_all_other_work_does_not_wait_for_the_rest(results):
    # Together they pass the memory side's share. One after the other they would take 1,200 steps.
    assert len(results["blend_three_long"]["decode_rows"]) < 720


def test_a_few_large_prompts_keep_the_cache_as_full_as_first_come_first_served(results):
    """A margin for those who outlive their estimates must not exceed what all of them hold in the end."""
    steps = {policy: len(results[f"{policy}_large"]["decode_rows"]) for policy in ("fcfs", "blend")}
    assert steps["blend"] <= 1.05 * steps["fcfs"]
    assert results["blend_large"]["retractions"] == 0


def test_long_answers_begin_in_room_that_is_free_for_a_while(results):
    """Ten, a sixth to a third of the cache each: 1,388 steps if none begins before it fits to its end."""
    run = results["blend_guests"]
    assert len(run["decode_rows"]) < 1150
    assert run["retractions"] > 0
    assert sum(run["prefill_tokens"]) > run["prompt_tokens"]  # what they held was computed again


def test_a_right_profile_makes_the_same_run_to_the_last_bit_whether_steps_are_measured_or_not(results):
    measured, left_alone = results["blend"], results["blend_not_measured"]
    assert measured["admitted"] == left_alone["admitted"]
    assert measured["step_seconds"] == left_alone["step_seconds"]
    assert measured["step_times"]["error"] == pytest.approx(0.0, abs=1e-9)
    assert left_alone["step_times"] is None


@pytest.mark.parametrize("told", ["h100", "l40s"])
def test_a_planner_that_takes_the_gpu_for_another_one_finds_out_alike_in_every_run(results, told):
    run, again = results[f"blend_told_{told}"], results[f"blend_told_{told}_again"]
    assert run["step_times"]["hardware"] == told
    assert run["step_times"]["compute"] != 1.0
    assert run["step_times"]["error"] < 0.1
    assert run["step_times"] == again["step_times"]
    assert run["step_seconds"] == again["step_seconds"]


def test_nobody_visits_where_prefill_and_steps_hide_behind_each_other(results):
    assert results["blend_overlapped_guests"]["retractions"] == 0
    assert (
        sum(results["blend_overlapped_guests"]["prefill_tokens"]) <= results["blend_guests"]["prompt_tokens"]
    )


def test_a_token_shared_by_chance_is_waited_for_where_others_take_the_place(results):
    """About 220 of 600 prompts share one token with another; waiting costs nothing while steps stay full."""
    patient, hasty = results["blend_chance"], results["blend_chance_without_spare"]
    assert sum(hasty["prefill_tokens"]) - sum(patient["prefill_tokens"]) > 100
    assert patient["seconds"] <= 1.01 * hasty["seconds"]


def test_an_engine_program_runs_over_a_config_alone(config_folder):
    answer = run(
        "engine_program.py",
        str(config_folder),
        platform="simulated_gpu",
        SGLANG_SIMULATED_GPU="h100",
        SGLANG_SIMULATED_GPU_ENGINE="overlapped",
    )
    assert answer["lengths"] == list(range(10, 18))
    assert answer["state"]["hardware"] == "h100"
    assert answer["state"]["engine"] == "overlapped"
    assert answer["state"]["decode_rows"] >= sum(range(10, 18)) - 8
    assert answer["state"]["seconds"] > 0

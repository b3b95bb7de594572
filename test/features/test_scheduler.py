"""Upstream's features under blend, in a scheduler on a CPU: its answers are those of fcfs, nothing leaks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from checkpoints import make_llama
from helpers import LoneScheduler, lone_scheduler

Tokens = dict[str, list[int]]


def prompts(n: int, *, seed: int = 0) -> list[list[int]]:
    """Prompts of 25 to 145 tokens; every second one begins with the same twenty."""
    rng = random.Random(seed)
    return [[5] * (20 * (i % 2)) + _tokens(rng, rng.randint(25, 125)) for i in range(n)]


def _tokens(rng: random.Random, n: int) -> list[int]:
    return [rng.randint(10, 500) for _ in range(n)]


def submit(lone: LoneScheduler, n: int = 24, *, seed: int = 0, **request: Any) -> list[str]:
    lengths = random.Random(seed)
    return [lone.submit(prompt, lengths.randint(2, 20), **request) for prompt in prompts(n, seed=seed)]


def by_policy(work: Callable[[LoneScheduler], Any], model: Path, **arguments: Any) -> dict[str, Tokens]:
    """Output tokens by request id, once under fcfs and once under blend."""
    outputs = {}
    for policy in ("fcfs", "blend"):
        with lone_scheduler(model, simulated=False, schedule_policy=policy, **arguments) as lone:
            work(lone)
            lone.run()
            lone.check_leaks()
            assert {reason["type"] for reason in lone.finished.values()} <= {"length", "stop"}
            outputs[policy] = lone.outputs
    assert len({tuple(tokens) for tokens in outputs["fcfs"].values()}) > 1  # answers depend on the prompts
    return outputs


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"disaggregation_mode": "decode"}, "--disaggregation-mode decode"),
        ({"dllm_algorithm": "LowConfidence"}, "--dllm-algorithm"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(arguments: dict[str, Any], what: str) -> None:
    from types import SimpleNamespace

    from sglang.srt.blend.runtime import startup
    from sglang.srt.runtime_context import get_context

    with (
        get_context().override_server_args(**arguments),
        pytest.raises(ValueError, match=f"--schedule-policy blend does not go with {what}"),
    ):
        startup.prepare(SimpleNamespace())


# ---------------------------------------------------------------- KV in eight bits


def test_kv_in_eight_bits_is_planned_with_half_the_bytes(tiny_llama: Path) -> None:
    """Only planned: the CPU's attention kernels have no such KV."""
    sizes = {}
    for dtype in ("bfloat16", "fp8_e5m2"):
        with lone_scheduler(tiny_llama, schedule_policy="blend", kv_cache_dtype=dtype) as lone:
            rids = submit(lone)
            lone.run()
            lone.check_leaks()
            assert all(len(lone.outputs[rid]) == lone.output_length[rid] for rid in rids)
            sizes[dtype] = lone.scheduler.blend.planner.cost_model.shape.kv_bytes_per_token
    assert sizes["fp8_e5m2"] * 2 == sizes["bfloat16"]


# ---------------------------------------------------------------- pages and host memory


@pytest.mark.parametrize("page_size", [16, 64])
def test_pages_of_any_size_give_the_tokens_of_fcfs(tiny_llama: Path, page_size: int) -> None:
    outputs = by_policy(submit, tiny_llama, page_size=page_size, chunked_prefill_size=128)
    assert outputs["blend"] == outputs["fcfs"]


def test_a_hierarchical_cache_gives_the_tokens_of_fcfs_and_the_log_says_that_it_is_upstreams(
    tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The pool is small, so that prefixes move to the host and back."""

    def twice(lone: LoneScheduler) -> None:
        submit(lone, 40)
        lone.run()
        submit(lone, 40)

    caplog.set_level("INFO", "sglang.srt.blend")
    flags = {"enable_hierarchical_cache": True, "hicache_ratio": 2.0, "max_total_tokens": 1024}
    outputs = by_policy(twice, tiny_llama, hicache_io_backend="direct", page_size=1, **flags)
    assert outputs["blend"] == outputs["fcfs"]
    assert "no annotations: --enable-hierarchical-cache" in caplog.text


# ---------------------------------------------------------------- reinforcement learning


def test_a_pause_that_retracts_everybody_loses_nobody(tiny_llama: Path) -> None:
    """What a trainer does to load weights while answers are being written."""
    from sglang.srt.managers.io_struct import ContinueGenerationReqInput, PauseGenerationReqInput

    with lone_scheduler(tiny_llama, schedule_policy="blend") as lone:
        rids = submit(lone, 40)
        for turn in range(60):
            lone.step()
            if turn % 10 == 5:
                lone.scheduler.pause_generation(PauseGenerationReqInput(mode="retract"))
                lone.check_leaks()
                assert lone.scheduler.flush_cache()
                lone.scheduler.continue_generation(ContinueGenerationReqInput(torch_empty_cache=False))
        lone.run()
        lone.check_leaks()
        assert [len(lone.outputs[rid]) for rid in rids] == [lone.output_length[rid] for rid in rids]


def test_new_weights_between_pools_give_the_tokens_of_the_new_model(tiny_llama: Path, tmp_path: Path) -> None:
    from sglang.srt.managers.io_struct import UpdateWeightFromDiskReqInput

    other = make_llama(tmp_path / "other", seed=1)

    def updated(lone: LoneScheduler) -> None:
        submit(lone)
        lone.run()
        update = UpdateWeightFromDiskReqInput(model_path=str(other))
        lone.scheduler.process_input_requests([update])
        submit(lone, seed=7)

    outputs = by_policy(updated, tiny_llama)
    fresh = by_policy(lambda lone: submit(lone, seed=7), other)
    assert outputs["blend"] == outputs["fcfs"]
    assert list(outputs["blend"].values())[24:] == list(fresh["blend"].values())


# ---------------------------------------------------------------- sessions


def test_turns_of_a_session_give_the_tokens_of_fcfs(tiny_llama: Path) -> None:
    from sglang.srt.managers.io_struct import OpenSessionReqInput, SessionParams

    def three_turns(lone: LoneScheduler) -> None:
        for name in ("s0", "s1"):
            lone.scheduler.open_session(OpenSessionReqInput(capacity_of_str_len=4096, session_id=name))
        last: dict[str, str | None] = {"s0": None, "s1": None}
        for turn in range(3):
            submit(lone, 8, seed=10 + turn)
            for name, before in last.items():
                session = SessionParams(id=name, rid=before)
                last[name] = lone.submit([30 + turn] * 40, 6, rid=f"{name}-{turn}", session_params=session)
            lone.run()

    outputs = by_policy(three_turns, tiny_llama)
    assert outputs["blend"] == outputs["fcfs"]


# ---------------------------------------------------------------- LoRA


def make_adapter(folder: Path, seed: int, *, layers: int = 2, hidden: int = 64, rank: int = 4) -> Path:
    """A LoRA adapter of the tiny Llama's query and value projections, as peft writes it."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(layers):
        for name, width in (("q_proj", hidden), ("v_proj", hidden // 2)):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{stem}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator)
            weights[f"{stem}.lora_B.weight"] = torch.randn(width, rank, generator=generator)
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none"}
    config |= {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_adapters_give_the_tokens_of_fcfs_and_no_batch_has_more_of_them_than_allowed(
    tiny_llama: Path, tmp_path: Path
) -> None:
    paths = [f"a{i}={make_adapter(tmp_path / f'a{i}', i)}" for i in range(4)]
    most = 0

    def four_adapters(lone: LoneScheduler) -> None:
        nonlocal most
        ids = [reference.lora_id for reference in lone.scheduler.server_args.lora_paths]
        lengths = random.Random(1)
        for i, prompt in enumerate(prompts(24)):
            lone.submit(prompt, lengths.randint(2, 20), lora_id=ids[i % 4])
        while not lone.idle:
            batch = lone.step()
            if batch is not None:
                most = max(most, len({req.lora_id for req in batch.reqs}))

    limits = {"max_loras_per_batch": 2, "lora_backend": "torch_native", "enable_lora": True}
    outputs = by_policy(four_adapters, tiny_llama, lora_paths=paths, **limits)
    assert outputs["blend"] == outputs["fcfs"]
    assert most == 2


# ---------------------------------------------------------------- speculative decoding


def test_ngram_speculation_gives_the_tokens_of_fcfs(tiny_llama: Path) -> None:
    flags = {"speculative_algorithm": "NGRAM", "speculative_num_draft_tokens": 4}
    outputs = by_policy(submit, tiny_llama, attention_backend="torch_native", **flags)
    assert outputs["blend"] == outputs["fcfs"]

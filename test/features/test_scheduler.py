"""Upstream's features under blend, in a scheduler on a CPU: its answers are those of fcfs, nothing leaks."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("page_size", [16, 64])
def test_pages_of_any_size_give_the_tokens_of_fcfs(tiny_llama: Path, page_size: int) -> None:
    outputs = by_policy(submit, tiny_llama, page_size=page_size, chunked_prefill_size=128)
    assert outputs["blend"] == outputs["fcfs"]


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
        update = UpdateWeightFromDiskReqInput(model_path=str(other), load_format="auto")
        lone.scheduler.process_input_requests([update])
        submit(lone, seed=7)

    outputs = by_policy(updated, tiny_llama)
    fresh = by_policy(lambda lone: submit(lone, seed=7), other)
    assert outputs["blend"] == outputs["fcfs"]
    after = {
        f"r{int(rid[1:]) - 24}": tokens for rid, tokens in outputs["blend"].items() if int(rid[1:]) >= 24
    }
    assert after == fresh["blend"]


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

"""Kinds of models under blend, on the simulated GPU: hybrids and MLA among them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("simulated_models.py")),
            str(tmp_path_factory.mktemp("m")),
        ],
        env=os.environ | {"SGLANG_PLATFORM": "simulated_gpu"},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: Results = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def check(results: Results, model: str) -> dict[str, Any]:
    """Every answer has its length and nothing leaks, under both policies; what blend has found."""
    for policy in ("fcfs", "blend"):
        found = results[f"{model}, {policy}"]
        assert "error" not in found, found
        assert found["answered"], found["ended"]
        assert found["leaks"] == []
    assert results[f"{model}, blend"]["kv_capacity"] == results[f"{model}, fcfs"]["kv_capacity"] > 1000
    return results[f"{model}, blend"]


def test_a_model_of_plain_attention_is_answered(results: Results) -> None:
    assert check(results, "llama")["states"] == 0


def test_weights_in_eight_bits_leave_more_kv(results: Results) -> None:
    assert check(results, "llama in fp8")["kv_capacity"] > check(results, "llama")["kv_capacity"]


def test_a_model_of_latent_attention_is_answered(results: Results) -> None:
    """A token of the latent is smaller than one of two KV heads, so more of them fit."""
    assert check(results, "mla")["kv_capacity"] > check(results, "llama")["kv_capacity"]


def test_a_model_of_sliding_windows_is_answered(results: Results) -> None:
    check(results, "gemma2")


@pytest.mark.parametrize("model", ["falcon-h1", "qwen3-next"])
def test_a_model_with_recurrent_states_is_answered(results: Results, model: str) -> None:
    """The states have slots of their own, which take memory of the simulated GPU and none of this machine."""
    found = check(results, model)
    assert found["states"] > 0
    assert found["state_bytes"] == 0

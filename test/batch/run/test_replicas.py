"""`--dp-size`: the barrier holds every replica, and each answers whole subtrees of the pool."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from replicas_script import REQUESTS, TOPICS

from checkpoints import make_llama

SECONDS = 840  # for six processes that start an engine on a busy machine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


def run(model: Path, *more: str) -> dict[str, Any]:
    script = Path(__file__).with_name("replicas_script.py")
    flags = ["--model-path", str(model), "--dtype", "float32", "--max-total-tokens", "8192"]
    done = subprocess.run(
        [sys.executable, str(script), *flags, "--mem-fraction-static", "0.8", *more],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_two_replicas_of_two_ranks_answer_as_one_does_each_its_own_subtrees(model: Path) -> None:
    one, two = run(model), run(model, "--dp-size", "2", "--tp-size", "2")
    assert two["early"] == 0, "a replica did not hear of the barrier"
    assert len(two["texts"]) == len(TOPICS) * (REQUESTS + 1 + 1)
    assert two["texts"] == one["texts"]
    # Of each topic a pool, two answers to one prompt and that prompt alone, and who came late.
    done = [blend["completions"] for blend in two["blend"]]
    assert len(done) == 2
    assert sum(done) >= len(TOPICS) * (REQUESTS + 2 + 1)
    assert min(done) >= sum(done) / 3
    # Dealt in turns, each replica would compute every topic; the last to be dealt may be for the balance.
    assert sum(blend["cached_tokens"] for blend in two["blend"]) >= one["blend"][0]["cached_tokens"] * 0.85
    # By chance it would be half of them.
    found = sum(cached > 100 for cached in two["late_cached"])
    assert found >= 0.8 * len(TOPICS), "who came late was not sent where its prefix is"

"""A few of the pools of `benchmark.tight_pools`, so that they cannot rot."""

import json
from pathlib import Path

from benchmarks import run_benchmark


def test_random_pools_in_which_a_prompt_hardly_fits_are_answered_as_under_fcfs(tmp_path: Path) -> None:
    """Nobody is aborted whom fcfs answers, every pool ends, and its KV is free again."""
    written = tmp_path / "pools.json"
    sizes = ["--pools", "20", "--pools-of-a-server", "5", "--json", str(written)]
    done = run_benchmark("tight_pools", *sizes, timeout=850, SGLANG_PLATFORM="simulated_gpu")
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    found = json.loads(written.read_text())
    assert found["failures"] == []
    assert found["all"]["pools"] == 20
    assert len(found["by passes"]) > 1

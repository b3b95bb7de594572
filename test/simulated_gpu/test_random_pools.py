"""A few of the pools of `benchmark.tight_pools`, so that they cannot rot."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_random_pools_in_which_a_prompt_hardly_fits_are_answered_as_under_fcfs(tmp_path: Path) -> None:
    """Nobody is aborted whom fcfs answers, every pool ends, and its KV is free again."""
    written = tmp_path / "pools.json"
    sizes = ["--pools", "20", "--pools-of-a-server", "5", "--json", str(written)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmark.tight_pools", *sizes],
        cwd=ROOT,
        env=os.environ | {"SGLANG_PLATFORM": "simulated_gpu"},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    found = json.loads(written.read_text())
    assert found["failures"] == []
    assert found["all"]["pools"] == 20
    assert len(found["by passes"]) > 1

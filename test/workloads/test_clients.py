"""A small run of `benchmark.clients`."""

import json
from pathlib import Path

import pytest

from benchmarks import run_benchmark


def test_a_small_run_compares_blend_with_the_best_of_the_others(tmp_path: Path) -> None:
    out = tmp_path / "clients.json"
    command = [
        "--engine",
        "mixed",
        "--job",
        "alike",
        "--requests",
        "40",
        "--waiting",
        "8",
        "--json",
        str(out),
    ]
    ended = run_benchmark("clients", *command, timeout=600, SGLANG_PLATFORM="simulated_gpu")
    assert ended.returncode == 0, ended.stderr
    (row,) = json.loads(out.read_text())["runs"]
    assert (row["engine"], row["job"], row["requests"], row["waiting"]) == ("mixed", "alike", 40, 8)
    seconds = row["seconds"]
    assert set(seconds) == {"blend", "fcfs", "lpm", "dfs-weight"}
    assert seconds[row["best"]] == min(seconds[policy] for policy in seconds if policy != "blend")
    assert row["ratio"] == pytest.approx(seconds[row["best"]] / seconds["blend"], abs=1e-3)
    assert row["computed"]["fcfs"] == pytest.approx(40 * 500, abs=50)  # they share nothing
    assert "worst" in ended.stdout

"""What `benchmark.small_pools` draws and prints, and one of its pools."""

import json
from pathlib import Path

import numpy as np
import pytest
from benchmark.small_pools import UPSTREAM, Baselines, Row, random_pool, report

from benchmarks import run_benchmark

NUMBERS = range(60)


def test_pools_have_2_to_200_requests_of_unknown_lengths_within_their_caps() -> None:
    pools = [random_pool(0, number)[0] for number in NUMBERS]
    sizes = [len(pool) for pool in pools]
    assert min(sizes) >= 2
    assert max(sizes) <= 200
    assert min(sizes) < 6 < 100 < max(sizes)  # all sizes, and not the middle alone
    assert not any(pool.known.any() for pool in pools)
    assert all((pool.output <= pool.max_new_tokens).all() for pool in pools)


def test_the_cache_holds_each_request_and_rarely_all() -> None:
    whole = 0
    for number in NUMBERS:
        pool, _, capacity = random_pool(0, number)
        assert capacity > (pool.prompt + pool.max_new_tokens).max()
        whole += capacity >= pool.total_tokens
    assert whole < len(NUMBERS) / 4


def test_a_number_names_the_same_pool_again() -> None:
    (first, *_), (again, *_), (other, *_) = random_pool(0, 7), random_pool(0, 7), random_pool(0, 8)
    assert np.array_equal(first.tokens, again.tokens)
    assert not np.array_equal(first.tokens, other.tokens)


def test_reported_are_the_median_the_share_of_slower_pools_and_the_worst_first() -> None:
    rows = [
        Row("mixed", pool, 9, ["labels"], 500, {}, 0, "lpm", ratio)
        for pool, ratio in enumerate((1.2, 0.97, 1.005, 0.985))
    ]
    table, worst, *_ = report(rows)
    assert table.split() == "mixed 4 pools median 0.995x worst 0.970x slower by more than 2%: 25.0%".split()
    assert "0.970x  mixed, pool 1:" in worst


def test_a_pool_runs_under_blend_and_each_policy_of_sglang(tmp_path: Path) -> None:
    out = tmp_path / "pools.json"
    number = min(NUMBERS, key=lambda number: len(random_pool(0, number)[0].tokens))
    command = ["--engine", "mixed", "--pool", str(number), "--json", str(out)]
    ended = run_benchmark("small_pools", *command, timeout=600)
    assert out.exists(), ended.stderr
    written = json.loads(out.read_text())
    (row,) = written["pools"]
    best = min(row["seconds"][policy] for policy in UPSTREAM)
    assert row["pool"] == number
    assert row["ratio"] == pytest.approx(best / row["seconds"]["blend"], abs=1e-4)
    assert "baselines" not in written
    assert ended.returncode == (row["ratio"] < 1 / 1.02)
    assert written["seed"] == 0

    row["seconds"]["lpm"] = 0.001  # nobody measures it again
    out.write_text(json.dumps(written | {"commit": "then"}))
    run_benchmark("small_pools", *command, "--baselines", str(out), timeout=600)
    later = json.loads(out.read_text())
    assert (later["baselines"], later["pools"][0]["best"]) == ("then", "lpm")
    assert later["pools"][0]["seconds"] == row["seconds"]


def test_baselines_are_of_the_same_pools(tmp_path: Path) -> None:
    (tmp_path / "pools.json").write_text(json.dumps({"commit": "then", "seed": 1, "pools": []}))
    with pytest.raises(SystemExit, match="seed 1, not 0"):
        Baselines(tmp_path / "pools.json", 0)

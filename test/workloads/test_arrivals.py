"""What `benchmark.arrivals` draws, and a small version of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from benchmark.arrivals import BAR, BURSTS, KINDS, arrivals, batch

from benchmarks import run_benchmark


@pytest.mark.parametrize("kind", KINDS)
def test_arrivals_are_sorted_and_within_the_spread(kind: str) -> None:
    seconds = arrivals(kind, 100, 5.0, seed=3)
    assert np.all(np.diff(seconds) >= 0)
    assert seconds[0] >= 0
    assert seconds[-1] <= 5.0
    assert len(np.unique(seconds)) == {"at once": 1, "bursts": BURSTS, "poisson": 100}[kind]


def test_the_batch_has_unknown_lengths_and_documents_that_are_read_in_many_places() -> None:
    pool = batch(200, seed=1)
    assert not pool.known.any()
    long = np.flatnonzero(pool.prompt >= 1300)
    assert len(long) == 100
    texts = [pool.prompt_tokens(request)[:1200].tobytes() for request in long]
    assert len(set(texts)) <= 25


def test_a_small_run_counts_waits_and_compares_with_the_run_that_knew_all(tmp_path: Path) -> None:
    out = tmp_path / "arrivals.json"
    command = ["--engine", "mixed", "--requests", "60", "--online", "6", "--json", str(out)]
    ended = run_benchmark("arrivals", *command, timeout=600, SGLANG_PLATFORM="simulated_gpu")
    assert out.exists(), ended.stderr
    first, *others = json.loads(out.read_text())["runs"]
    assert first["share"] == 1.0
    assert first["queued"] == 60
    pool = batch(60, seed=0)
    suffixes = int(np.maximum(pool.prompt - 1200, 0).sum())  # only documents are shared
    assert suffixes < first["computed"] < pool.prompt.sum()
    assert [(row["kind"], row["online"]) for row in others] == [
        ("poisson", 0),
        ("bursts", 0),
        ("at once", 6),
        ("poisson", 6),
        ("bursts", 6),
    ]
    for row in others:
        assert row["share"] == pytest.approx(row["throughput"] / first["throughput"], abs=1e-3)
        assert row["admissions"] <= 10 * row["queued"]  # the bound of docs/algorithm.md
        if row["kind"] != "at once":
            assert row["seconds"] > 0.5 * first["seconds"]
        if row["online"]:
            assert row["computed"] > first["computed"], "the user's prompts are new"
            assert 1 <= row["online_steps"][0] <= row["online_steps"][1]
    slow = any(row["share"] < BAR and not row["online"] for row in others)
    assert ended.returncode == slow

"""What a judge foresees of jobs, against what SGLang's scheduler then took (simulated)."""

import json
from pathlib import Path

import pytest
from benchmark.judge import AT_ONCE, PACED, foresee_real, real_job

RESULTS = Path(__file__).parents[2] / "benchmark" / "results" / "judge_jobs.json"
TAKEN = {(row["engine"], row["pool"]): row["taken"] for row in json.loads(RESULTS.read_text())["pools"]}


@pytest.mark.parametrize("job", ["agents", "documents", "extraction", "images", "translation"])
@pytest.mark.parametrize("engine", ["mixed", "overlapped"])
def test_the_judge_is_off_by_a_tenth_at_most(engine, job):
    """And knows whether to spread prefill where it matters."""
    foreseen, taken = foresee_real(engine, *real_job(job, seed=0)), TAKEN[engine, job]
    assert foreseen == pytest.approx(taken, rel=0.1)
    if abs(taken[PACED] / taken[AT_ONCE] - 1.0) > 0.05:
        assert (foreseen[PACED] < foreseen[AT_ONCE]) == (taken[PACED] < taken[AT_ONCE])

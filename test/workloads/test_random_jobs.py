"""What `benchmark.random_jobs` draws, and one of its jobs."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from benchmark.random_jobs import LONGEST, MOST, SHARING, random_job

from benchmarks import run_benchmark
from sglang.srt.blend.core.pool.workload import Workload

Job = tuple[Workload, list[str], int]


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    return [random_job(0, number) for number in range(40)]


def test_every_way_of_sharing_is_drawn_in_jobs_of_one_to_three_parts(jobs: list[Job]) -> None:
    drawn = [kinds for _, kinds, _ in jobs]
    assert {kind for kinds in drawn for kind in kinds} == set(SHARING)
    assert {len(kinds) for kinds in drawn} == {1, 2, 3}


def test_answers_are_unknown_and_end_at_their_caps(jobs: list[Job]) -> None:
    for job, _, _ in jobs:
        assert 1 <= len(job) <= MOST
        assert not job.known.any()
        assert (job.output >= 1).all()
        assert (job.output <= job.max_new_tokens).all()
        assert job.max_new_tokens.max() <= LONGEST
    assert any((job.output == job.max_new_tokens).any() for job, _, _ in jobs)


def test_a_cache_holds_each_request_and_never_the_whole_job(jobs: list[Job]) -> None:
    for job, _, capacity in jobs:
        assert (job.prompt + job.max_new_tokens).max() < capacity < job.total_tokens


def test_samples_share_their_prompt_and_turns_what_was_said_before(jobs: list[Job]) -> None:
    def shares_of(kind: str) -> list[float]:
        """Of jobs of this kind alone: the share of requests whose prompt is the beginning of another."""
        shares = []
        for job, kinds, _ in jobs:
            if set(kinds) == {kind}:
                prompts = sorted(job.prompt_tokens(i).tolist() for i in range(len(job)))
                begins = [b[: len(a)] == a for a, b in itertools.pairwise(prompts)]
                shares.append(float(np.mean(begins)))
        return shares

    assert all(map(shares_of, ("samples", "sessions", "nothing", "template")))
    for kind in ("samples", "sessions"):
        assert all(share >= 0.4 for share in shares_of(kind))  # groups of two at least
    assert not any(share for kind in ("nothing", "template") for share in shares_of(kind))


def test_a_number_names_the_same_job_again(jobs: list[Job]) -> None:
    again, other = random_job(0, 3)[0], random_job(1, 3)[0]
    assert np.array_equal(jobs[3][0].tokens, again.tokens)
    assert not np.array_equal(again.tokens, other.tokens)


def test_a_job_runs_under_blend_and_each_policy_of_sglang(jobs: list[Job], tmp_path: Path) -> None:
    out = tmp_path / "jobs.json"
    number = min(range(len(jobs)), key=lambda number: int(jobs[number][0].output.sum()))
    command = ["--engine", "alternating", "--pool", str(number), "--json", str(out)]
    ended = run_benchmark("random_jobs", *command, timeout=600)
    assert out.exists(), ended.stderr
    written = json.loads(out.read_text())
    (row,) = written["pools"]
    assert written["command"].startswith("python -m benchmark.random_jobs --engine")
    assert (row["pool"], row["requests"]) == (number, len(jobs[number][0]))
    assert set(row["seconds"]) == {"blend", "fcfs", "lpm", "dfs-weight", "lof"}
    assert ended.returncode == (row["ratio"] < 1 / 1.02)

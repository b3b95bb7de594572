"""Jobs whose lengths nobody knows have the shapes that their names promise."""

import numpy as np
import pytest
from benchmark.paper.compare import Run, cost_model
from benchmark.paper.tables import TABLES
from benchmark.workloads.jobs import JOBS, make_job

from sglang.srt.blend.core.pool.workload import Workload

COST = cost_model(Run(0, "blend", "mixed", 0, hardware="a100-40gb"))


@pytest.fixture(scope="module", params=JOBS)
def job(request: pytest.FixtureRequest) -> tuple[str, Workload]:
    return request.param, make_job(request.param)


def test_no_length_is_known_and_no_answer_fills_the_cap_of_all(job: tuple[str, Workload]) -> None:
    _, workload = job
    assert not workload.known.any()
    assert np.mean(workload.output == workload.max_new_tokens) < 0.1


def test_a_job_needs_more_kv_than_the_gpu_has_at_once_but_for_short_ones(job: tuple[str, Workload]) -> None:
    name, workload = job
    whole = int(workload.tree(COST).node_kv_tokens[0])
    assert whole > 147_000 * 2, f"{name}: {whole}"


SHARING = {
    "documents": (0.9, 1.0),
    "reasoning": (0.0, 0.01),
    "rollouts": (0.9, 0.95),
    "agents": (0.7, 0.95),
    "long prompts": (0.0, 0.01),
    "classification": (0.7, 0.9),
    "images": (0.6, 0.8),
}


@pytest.mark.parametrize(("name", "between"), SHARING.items())
def test_jobs_share_what_they_are_about(name: str, between: tuple[float, float]) -> None:
    sharing = make_job(name).statistics(COST).sharing
    assert between[0] <= sharing <= between[1]


def test_equal_seeds_give_equal_jobs_and_others_give_others() -> None:
    first, again, other = make_job("alike"), make_job("alike"), make_job("alike", seed=1)
    assert np.array_equal(first.tokens, again.tokens)
    assert not np.array_equal(first.tokens, other.tokens)


def test_every_job_runs_on_every_engine_under_blend_and_a_policy_of_upstream() -> None:
    runs = {(run.job, run.engine, run.policy == "blend") for run in TABLES["real"]()}
    assert len(runs) == len(JOBS) * 4 * 2

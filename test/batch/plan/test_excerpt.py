"""An excerpt stands for its pool."""

import numpy as np
import pytest
from plans import COST, families, make_prompts

from sglang.batch.plan.answers import assume_answers
from sglang.batch.plan.excerpt import choose_excerpt


def test_an_excerpt_has_the_pools_density_and_sharing() -> None:
    rng = np.random.default_rng(3)
    prompts = families(dict.fromkeys(range(1, 200), 20)) + families(
        dict.fromkeys(range(300, 3300), 1), prefix=5
    )
    caps = [4] * 3980 + rng.integers(500, 1500, 3000).tolist()
    workload, _, _, _ = assume_answers(make_prompts(prompts, cap=caps), output_tokens=None, longest=4096)
    chosen = choose_excerpt(workload, 1400, COST)
    assert len(chosen) == pytest.approx(1400, abs=25)
    assert np.all(np.diff(chosen) > 0)
    whole, part = workload.statistics(COST), workload.take(chosen).statistics(COST)
    assert part.sharing == pytest.approx(whole.sharing, rel=0.05)
    assert part.density == pytest.approx(whole.density, rel=0.05)


def test_a_pool_that_is_small_enough_is_its_own_excerpt() -> None:
    workload, _, _, _ = assume_answers(make_prompts(families({1: 5})), output_tokens=None, longest=4096)
    assert choose_excerpt(workload, 5, COST).tolist() == [0, 1, 2, 3, 4]


def test_one_group_larger_than_the_excerpt_is_cut_within() -> None:
    workload, _, _, _ = assume_answers(make_prompts(families({1: 4000})), output_tokens=8, longest=4096)
    chosen = choose_excerpt(workload, 1000, COST)
    assert len(chosen) == pytest.approx(1000, abs=20)

"""What answers of unknown lengths may turn out to be."""

import numpy as np

from pools import planner_for, pool
from sglang.srt.blend.core.order.scenarios import scenarios


def drawn(n, **lengths):
    planner = planner_for(pool([[i, i] for i in range(n)], 40, **lengths), sample_fraction=0.0)
    planner.replan()
    table = planner.table
    return scenarios(table, np.arange(n)), table.ends(np.arange(n), 4)


def test_together_they_are_all_that_a_request_may_answer():
    outputs, ends = drawn(50, known=False, max_new=500)
    assert np.array_equal(np.sort(outputs, axis=1), np.sort(ends, axis=1))
    assert len(np.unique(outputs[0])) == outputs.shape[1]


def test_each_alone_has_long_and_short_answers():
    outputs, ends = drawn(200, known=False, max_new=500)
    for outcome in outputs.T:
        for length in np.unique(ends):
            assert 20 <= (outcome == length).sum() <= 80  # 50 on average


def test_a_known_length_is_the_same_in_all():
    outputs, _ = drawn(5, known=True, max_new=500)
    assert (outputs == 40).all()


def test_equal_calls_give_equal_scenarios():
    assert np.array_equal(drawn(30, known=False, max_new=500)[0], drawn(30, known=False, max_new=500)[0])

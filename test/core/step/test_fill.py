"""How full the cache is of what requests hold for themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blend.core.step.fill import EXPECTED, Fill

CAPACITY = 1000


def after(*steps):
    fill = Fill()
    for held, used in steps:
        fill.note(held, used, CAPACITY)
    return fill.share


def test_steps_of_a_full_cache_are_learned_from():
    """Two documents of 400 tokens, of which their readers hold 100 beside them."""
    assert after(*[(100, 900)] * 640) == pytest.approx(0.1, abs=1e-3)


def test_a_cache_that_fills_up_or_empties_says_nothing():
    assert after(*[(100, 700)] * 640) == EXPECTED


@given(st.lists(st.tuples(st.floats(0, 5 * CAPACITY), st.integers(0, CAPACITY))))
def test_a_share_stays_a_share(steps):
    assert 0.0 < after(*steps) <= 1.0

"""A shared prefix is computed by one request of a step (paper A.2)."""

import pytest

from sglang.srt.blend.core.step.leaders import NO_PREFIX, PrefixKeys, PrefixLeaders


@pytest.mark.parametrize("lag", [1, 2])
def test_a_duplicate_waits_while_its_leader_computes_and_no_longer(lag):
    leaders = PrefixLeaders(lag)
    leaders.next_step()
    assert not leaders.compute("prefix")
    leaders.lead(PrefixKeys("prefix", "p"))
    for _ in range(lag):
        assert leaders.compute("prefix")
        assert leaders.compute("p")
        assert not leaders.compute("other")
        leaders.next_step()
    assert not leaders.compute("prefix")


def test_requests_without_a_key_are_never_deferred():
    leaders = PrefixLeaders()
    leaders.lead(NO_PREFIX)
    assert not leaders.compute(None)


def test_a_lag_below_one_step_is_refused():
    with pytest.raises(ValueError, match="lag 0"):
        PrefixLeaders(0)

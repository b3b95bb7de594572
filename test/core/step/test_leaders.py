"""A shared prefix is computed by one request of a step (paper A.2)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blend.core.pool.request_table import RequestTable, State
from sglang.srt.blend.core.step.leaders import PrefixLeaders


def table_of(prompts, namespace=None):
    table = RequestTable()
    table.put(
        np.concatenate([np.array(p, np.int32) for p in prompts]),
        np.cumsum([0, *map(len, prompts)]),
        max_new_tokens=np.full(len(prompts), 8),
        known_output=None,
        expected_output=None,
        extra_compute=None,
        namespace=namespace,
    )
    table.state[:] = State.RUNNING
    return table


@pytest.mark.parametrize("lag", [1, 2])
def test_a_duplicate_waits_while_its_leader_computes_and_no_longer(lag):
    leaders = PrefixLeaders(table_of([[1] * 9, [1] * 9, [2] * 9]), lag)
    leaders.next_step()
    assert not leaders.compute(1, 0, 4)
    leaders.lead(0)
    for _ in range(lag):
        assert leaders.compute(1, 0, 4)
        assert leaders.compute(1, 3, 4)  # some of it is cached by now
        assert not leaders.compute(2, 0, 4)
        leaders.next_step()
    assert not leaders.compute(1, 0, 4)


def test_the_last_token_of_a_prompt_is_computed_always():
    table = table_of([[1] * 9, [1] * 9])
    leaders = PrefixLeaders(table)
    leaders.lead(0)
    assert leaders.compute(1, 0, 8)
    assert not leaders.compute(1, 0, 9)
    table.generated[1] = 3  # retracted: its last token is one of its answer
    assert leaders.compute(1, 0, 9)
    assert not leaders.compute(1, 0, 10)


def test_nobody_follows_itself_or_another_namespace_or_who_does_not_run():
    table = table_of([[1] * 9] * 4, namespace=[0, 0, 1, 0])
    leaders = PrefixLeaders(table)
    leaders.lead(1)
    assert [leaders.compute(slot, 0, 4) for slot in range(4)] == [True, False, False, True]
    table.state[1] = State.WAITING  # retracted
    assert not leaders.compute(0, 0, 4)


prompts = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=8)


@given(prompts, st.integers(0, 5), st.integers(1, 4), st.lists(st.integers(0, 7), max_size=200))
def test_a_leader_begins_with_all_that_the_follower_has_and_wants(prompts, cached, tokens, chosen):
    leaders = PrefixLeaders(table_of(prompts))
    chosen = [slot % len(prompts) for slot in chosen]
    for slot in chosen:
        leaders.lead(slot)
    until = cached + tokens
    for slot, prompt in enumerate(prompts):
        led = any(prompts[one][:until] == prompt[:until] for one in chosen if one != slot)
        assert leaders.compute(slot, cached, tokens) == (led and until < len(prompt))


def test_a_lag_below_one_step_is_refused():
    with pytest.raises(ValueError, match="lag 0"):
        PrefixLeaders(RequestTable(), 0)

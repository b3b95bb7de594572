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
    assert leaders.shared(1, 0) == 0
    leaders.lead(0)
    for _ in range(lag):
        assert leaders.shared(1, 0) == 8
        assert leaders.shared(1, 3) == 5  # some of it is cached by now
        assert leaders.shared(2, 0) == 0
        leaders.next_step()
    assert leaders.shared(1, 0) == 0


def test_the_last_token_of_a_prompt_is_computed_always():
    table = table_of([[1] * 9, [1] * 9])
    leaders = PrefixLeaders(table)
    leaders.lead(0)
    assert leaders.shared(1, 0) == 8
    table.generated[1] = 3  # retracted: its last token is one of its answer
    assert leaders.shared(1, 0) == 9


def test_nobody_follows_itself_or_another_namespace_or_who_does_not_run():
    table = table_of([[1] * 9] * 4, namespace=[0, 0, 1, 0])
    leaders = PrefixLeaders(table)
    leaders.lead(1)
    assert [leaders.shared(slot, 0) for slot in range(4)] == [8, 0, 0, 8]
    table.state[1] = State.WAITING  # retracted
    assert leaders.shared(0, 0) == 0


def common(one, other):
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


prompts = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=8)


@given(prompts, st.integers(0, 5), st.lists(st.integers(0, 7), max_size=200))
def test_the_leader_that_shares_most_counts(prompts, cached, chosen):
    leaders = PrefixLeaders(table_of(prompts))
    chosen = [slot % len(prompts) for slot in chosen]
    for slot in chosen:
        leaders.lead(slot)
    for slot, prompt in enumerate(prompts):
        most = max((common(prompts[one], prompt[:-1]) for one in chosen if one != slot), default=0)
        assert leaders.shared(slot, cached) == max(most - cached, 0)


@given(prompts, st.integers(1, 6))
def test_followers_begin_alike(prompts, tokens):
    table = table_of(prompts)
    table.state[0::2] = State.WAITING
    leaders = PrefixLeaders(table)
    tokens = min(tokens, len(prompts[0]))
    alike = [prompt[:tokens] == prompts[0][:tokens] for prompt in prompts[0::2]]
    assert leaders.followers(range(len(prompts)), 0, tokens) == sum(alike)


def test_a_lag_below_one_step_is_refused():
    with pytest.raises(ValueError, match="lag 0"):
        PrefixLeaders(RequestTable(), 0)

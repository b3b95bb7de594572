"""KV forecast against stepping through the future."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blend.core.step.forecast import KVForecast

requests = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40)), max_size=12)


def stepped_peak(used, running):
    peak = used
    used -= sum(released for remaining, released in running if remaining == 0)
    running = [list(r) for r in running if r[0] > 0]
    while running:
        for request in running:
            if request[0] > 0:
                request[0] -= 1
                request[1] += 1
                used += 1
        peak = max(peak, used)
        used -= sum(released for remaining, released in running if remaining == 0)
        running = [r for r in running if r[0] > 0]
    return peak


def forecast(used, running, margin=0):
    remaining, released = (np.array([r[i] for r in running], np.int64) for i in range(2))
    return KVForecast(used, remaining, released, margin)


@given(requests, st.integers(0, 100))
def test_peak_equals_stepping(running, shared):
    used = shared + sum(released for _, released in running)
    assert forecast(used, running).peak() == stepped_peak(used, running)


@given(requests, st.integers(0, 100), requests)
def test_peak_with_an_addition_equals_stepping_until_its_end(running, shared, added):
    used = shared + sum(released for _, released in running)
    ahead = forecast(used, running)
    for remaining, new in added:
        running, used = [*running, (remaining, new)], used + new
        until_its_end = [(min(left, remaining), released) for left, released in running]
        assert ahead.peak_with(new, remaining) == stepped_peak(used, until_its_end)
        ahead.add(new, remaining)
        assert ahead.peak() == stepped_peak(used, running)
        assert len(ahead) == len(running)


@given(requests, st.integers(0, 30), st.integers(0, 40), st.integers(0, 200))
def test_a_margin_is_added_but_never_more_than_if_nobody_ended(running, remaining, new, margin):
    used = sum(released for _, released in running)
    nobody_ends = [(remaining, released) for _, released in running] + [(remaining, new)]
    plain = forecast(used, running).peak_with(new, remaining)
    careful = forecast(used, running, margin).peak_with(new, remaining)
    assert careful == min(plain + margin, stepped_peak(used + new, nobody_ends))
    assert forecast(used, running, margin).peak() == forecast(used, running).peak()


@given(requests, st.integers(0, 100), st.integers(0, 40), st.integers(0, 600), st.integers(0, 200))
def test_the_longest_that_fits_is_the_last_that_fits(running, shared, new, room, margin):
    used = shared + sum(released for _, released in running)
    ahead = forecast(used, running, margin)
    longest = ahead.longest(new, room)
    if longest >= 0:
        assert ahead.peak_with(new, longest) <= room
    assert ahead.peak_with(new, longest + 1) > room

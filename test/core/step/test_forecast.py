"""KV forecast against stepping through the future."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blend.core.step.forecast import PARTS, KVForecast

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


def forecast(used, running):
    remaining, released = (np.array([r[i] for r in running], np.int64) for i in range(2))
    return KVForecast.of_known(used, remaining, released)


def unknown(used, running, deviations=2.0):
    """The same requests, which may end at half of that time or go on for half of it more."""
    remaining, released = (np.array([r[i] for r in running], np.int64) for i in range(2))
    ends = np.rint(np.outer(remaining, np.linspace(0.5, 1.5, PARTS))).astype(np.int64)
    return KVForecast(used, ends, released, deviations)


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


@given(requests, st.integers(0, 30), st.integers(0, 40))
def test_deviations_stay_free_but_never_more_than_if_nobody_ended(running, remaining, new):
    used = sum(released for _, released in running)
    nobody_ends = [(remaining, released) for _, released in running] + [(remaining, new)]
    plain = unknown(used, running, 0.0).peak_with(new, remaining)
    careful = unknown(used, running).peak_with(new, remaining)
    assert plain <= careful <= stepped_peak(used + new, nobody_ends)
    assert unknown(used, running).peak() == unknown(used, running, 0.0).peak()


def test_many_of_unknown_length_hold_what_is_expected_of_them_and_a_little_more():
    """A thousand answers with 500 tokens each; lengths are exponential, so half of them ends in 350 steps."""
    rng = np.random.default_rng(0)
    ends = np.rint(-500 * np.log1p(-(np.arange(PARTS) + 0.5) / PARTS)).astype(np.int64)
    ahead = KVForecast(500_000, np.tile(ends, (1000, 1)), np.full(1000, 500), 2.0)
    steps = np.arange(0, 2000, 10)
    left = rng.exponential(500, (20, 1000, 1))
    held = np.where(left > steps, 500 + steps, 0).sum(axis=1).max(axis=1)
    assert held.max() <= ahead.peak_with(0, 2000) < 1.15 * held.mean()
    certain = KVForecast.of_known(500_000, np.full(1000, 500), np.full(1000, 500))
    assert certain.peak_with(0, 2000) > 1.9 * held.mean()


@given(requests, st.integers(0, 100), st.integers(0, 40), st.integers(0, 600), st.booleans())
def test_the_longest_that_fits_is_the_last_that_fits(running, shared, new, room, known):
    used = shared + sum(released for _, released in running)
    ahead = forecast(used, running) if known else unknown(used, running)
    longest = ahead.longest(new, room)
    if longest >= 0:
        assert ahead.peak_with(new, longest) <= room
    assert ahead.peak_with(new, longest + 1) > room

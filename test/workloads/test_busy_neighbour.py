"""What benchmark.busy_neighbour makes of its rounds, and its neighbour; engines are its own business."""

import os

import pytest
from benchmark.busy_neighbour import WAITS, busy_process, summarise


def test_ratios_are_those_of_one_round_and_their_median_counts() -> None:
    """A slow round slows all of its steps alike, so it says nothing about waiting."""
    rounds = [
        {f"{wait}, {when}": ms * slow for wait in WAITS for when, ms in (("alone", 10.0), ("beside", 20.0))}
        for slow in (1.0, 8.0, 2.0)
    ]
    rounds[0]["sleeping, alone"] = 5.0
    figures = summarise(rounds)
    assert figures["platform, alone, ms"] == 20.0
    assert figures["platform, beside / alone"] == pytest.approx(2.0)
    assert figures["alone, sleeping / OpenMP"] == pytest.approx(1.0)


def test_the_neighbour_is_gone_afterwards() -> None:
    with busy_process() as neighbour:
        os.kill(neighbour, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(neighbour, 0)

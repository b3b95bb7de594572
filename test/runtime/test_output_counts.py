"""Who runs, in order of admission, whoever begins and ends between two looks."""

from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blend.runtime.output_counts import OutputCounts

SLOTS = 5


@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.booleans()), max_size=60))
def test_those_that_run_are_in_order_of_admission(events):
    """Each event begins a request in a slot, or ends the one that is there; some are followed by a look."""
    running: dict[int, None] = {}
    counts = OutputCounts(lambda _: None)
    for slot, look in events:
        if slot in running:
            del running[slot]
            counts.ends(slot)
        else:
            running[slot] = None
            counts.begins(slot, 0)
        if look:
            assert counts.slots().tolist() == list(running)
    assert counts.slots().tolist() == list(running)
    assert sorted(counts._rowless) == sorted(running), "whoever has ended would be asked for ever"

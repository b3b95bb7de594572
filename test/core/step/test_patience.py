"""Nobody waits without end: what is passed over goes first after a bounded number of admissions."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from pools import planner_for, pool
from sglang.srt.blend.core.pool.request_table import RequestTable, State
from sglang.srt.blend.core.step import step as step_module
from sglang.srt.blend.core.step.patience import Patience
from sglang.srt.blend.core.step.step import Running, StepLimits
from sglang.srt.blend.core.step.verdict import Verdict

DENSE, MIDDLE, HEAVY = (100, 4), (40, 12), (10, 30)
"""Prompt and output tokens."""

CAPACITY, WAITING = 600, 36
"""KV tokens, and requests that the streams keep waiting."""

TURNS, ODD_TURN = 500, 100


def arrive(table: RequestTable, n: int) -> list[int]:
    one = np.ones(n, np.int64)
    slots = table.put(
        np.ones(n, np.int32),
        np.arange(n + 1),
        max_new_tokens=one,
        known_output=one,
        expected_output=None,
        extra_compute=None,
        namespace=None,
    )
    return slots.tolist()


def goes(table: RequestTable, slot: int) -> None:
    table.leave(slot)
    table.start_running(slot, shared=0)


def test_a_round_ends_with_those_that_waited_when_it_began() -> None:
    table = RequestTable()
    patience = Patience(table, 2.0)
    first, second, third = arrive(table, 3)
    assert patience.due(0) == []
    newcomer = arrive(table, 1)[0]
    goes(table, second)
    assert patience.due(5) == []
    assert patience.due(6) == [first, third]  # twice three admissions: nobody else goes now
    goes(table, first)
    assert patience.due(7) == [third]
    goes(table, third)
    assert patience.due(8) == []  # the next round begins
    assert patience.due(9) == []
    assert patience.due(10) == [newcomer]


@pytest.mark.parametrize("factor", [0.0, float("inf")])
def test_no_patience_is_order_of_arrival_and_endless_patience_is_the_plans(factor: float) -> None:
    table = RequestTable()
    patience = Patience(table, factor)
    assert patience.due(0) == []
    slots = arrive(table, 3)
    patience.due(0)
    assert patience.due(10**9) == ([] if factor else slots)


BOUND = 2 * (2.0 + 1) * (WAITING + 1)
"""Admissions, at a patience of 2."""


@dataclass
class Waits:
    """How many others were admitted between each one's arrival and its admission, by its number.

    Attributes:
        admitted, still: of those that were admitted, and of those that wait when the stream ends.
        odd: number of the odd one.
    """

    admitted: dict[int, int] = field(default_factory=dict)
    still: dict[int, int] = field(default_factory=dict)
    odd: int = -1

    @property
    def longest(self) -> int:
        return max([*self.admitted.values(), *self.still.values()])


def serve(stream, odd, *, patience: float) -> Waits:
    """Keep `WAITING` requests of a stream waiting, among which an odd one comes; a token a turn."""
    planner = planner_for(kv_capacity=CAPACITY, sample_fraction=0.0, patience=patience)
    table, running, came, waits, admissions = planner.table, [], {}, Waits(), 0

    def add(kinds) -> None:
        number = table.arrived
        prompts = [[number + i + 1] * prompt for i, (prompt, _) in enumerate(kinds)]
        slots = pool(prompts, [output for _, output in kinds]).add_to(planner)
        came.update({int(table.sequence[slot]): admissions for slot in slots})

    for turn in range(TURNS):
        if turn == ODD_TURN:
            waits.odd = table.arrived
            add([odd])
        missing = WAITING - table.num_waiting
        add([stream[(turn + i) % len(stream)] for i in range(max(missing, 0))])
        slots = np.array(running, np.int64)
        used = int((table.store.length[slots] + table.generated[slots]).sum())
        first = int(np.flatnonzero(table.state == State.WAITING)[0])
        step = planner.begin_step(Running(slots, table.generated[slots]), used, StepLimits(), first=first)
        assert not step.everything_fits
        for slot in step.proposals:
            tokens = int(table.store.length[slot])
            decision = step.consider(slot, tokens)
            if decision.verdict is Verdict.ENOUGH:
                break
            if decision.admits:
                step.admitted(decision, prefill_tokens=tokens, shared_tokens=0)
                running.append(slot)
                number = int(table.sequence[slot])
                waits.admitted[number] = admissions - came.pop(number)
                admissions += 1
        slots = np.array(running, np.int64)
        planner.ledger.progress(slots, table.generated[slots] + 1)
        for slot in [s for s in running if table.generated[s] >= table.known[s]]:
            running.remove(slot)
            planner.observe(slot, int(table.generated[slot]))
            planner.remove(slot)
    waits.still = {number: admissions - before for number, before in came.items()}
    return waits


STREAMS = {
    "a memory-heavy one in a dense stream": ([DENSE], HEAVY),
    "a dense one in a memory-heavy stream": ([HEAVY], DENSE),
    "one between two streams": ([DENSE, HEAVY], MIDDLE),
}


@pytest.fixture(autouse=True)
def nobody_preemptible(monkeypatch: pytest.MonkeyPatch) -> None:
    """These servers retract nobody."""
    monkeypatch.setattr(step_module, "PREEMPTION_GAIN", float("inf"))


@pytest.mark.parametrize("name", STREAMS)
def test_no_stream_keeps_anybody_waiting_beyond_the_bound(name: str) -> None:
    stream, odd = STREAMS[name]
    waits = serve(stream, odd, patience=2.0)
    assert len(waits.admitted) > 200
    assert waits.odd in waits.admitted
    assert waits.longest < BOUND


def test_without_the_rule_somebody_waits_without_end() -> None:
    """Somebody who came among the first still waits when the stream ends."""
    stream, odd = STREAMS["one between two streams"]
    waits = serve(stream, odd, patience=float("inf"))
    assert waits.still[min(waits.still)] > BOUND
    assert min(waits.still) < WAITING

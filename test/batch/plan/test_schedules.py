"""Processes of simulations end with the command that started them."""

import multiprocessing
import time

import pytest

from sglang.batch.plan.schedules import simulator_processes


def test_a_process_that_starts_while_the_others_are_stopped_is_stopped_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    active, calls = multiprocessing.active_children, []

    def one_behind() -> list[multiprocessing.Process]:
        calls.append(active())
        return calls[-2] if len(calls) > 2 else []

    monkeypatch.setattr(multiprocessing, "active_children", one_behind)

    def interrupted() -> None:
        with simulator_processes(1) as processes:
            processes.submit(time.sleep, 600)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(calls) > 2
    assert active() == []

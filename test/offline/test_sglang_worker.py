"""A run begins once the step of the run before is done with, although its answers have all come."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from benchmark.offline.pool_file import warm_up_pool
from benchmark.offline.sglang_worker import MeasuredEngine


class BusyScheduler:
    """Upstream's rule of flushing: a busy scheduler refuses at once, or says so after the time to wait."""

    def __init__(self, busy_s: float) -> None:
        self.busy_s = busy_s

    async def flush_cache(self, timeout_s: float | None = None) -> SimpleNamespace:
        idle = (timeout_s or 0.0) >= self.busy_s
        return SimpleNamespace(success=idle, message="" if idle else "Timed out waiting for idle state.")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A measured engine without an engine: it answers at once."""

    async def answer(_self: MeasuredEngine, pool: Any) -> tuple[float, list[Any]]:
        return 0.0, [None] * len(pool)

    monkeypatch.setattr(MeasuredEngine, "_answer", answer)
    engine = MeasuredEngine.__new__(MeasuredEngine)
    loop = asyncio.new_event_loop()

    def busy_for(seconds: float) -> MeasuredEngine:
        engine._engine = SimpleNamespace(loop=loop, tokenizer_manager=BusyScheduler(seconds))
        return engine

    yield busy_for
    loop.close()


def test_a_last_step_that_is_still_running_is_waited_for(measured: Any) -> None:
    pool = warm_up_pool()
    assert len(measured(5.0).answer(pool)[1]) == len(pool)


def test_a_scheduler_that_never_becomes_idle_is_an_error(measured: Any) -> None:
    with pytest.raises(RuntimeError, match="Timed out waiting for idle state"):
        measured(1e9).answer(warm_up_pool())

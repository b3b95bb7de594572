"""Large plans beside the steps: made in a thread from copies, and taken some fixed number of steps later.

When a plan is taken is decided by counting steps, so all tensor-parallel ranks take equal plans in the same
step, however fast their threads are. One that is not ready is waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from sglang.srt.blend.core.order.plan import OrderedWindow

LARGE = 10_000
"""Requests from which on a plan is made beside the steps: fewer are ordered in about the time of a step."""

_PER_STEP = 10_000
# Requests that are ordered while a step runs, with room to spare.


class PlanAside:
    """At most one plan that is being made.

    Attributes:
        making: whether one is.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._plan: Future[OrderedWindow] | None = None
        self._due = 0

    @property
    def making(self) -> bool:
        return self._plan is not None

    def begin(self, make: Callable[[], OrderedWindow], requests: int, step: int) -> None:
        """Make a plan of so many requests, to be taken some steps after this one.

        Args:
            make: touches nothing that the steps change.
        """
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="blend-plan")
        self._plan = self._executor.submit(make)
        self._due = step + 2 + requests // _PER_STEP

    def take(self, step: int) -> OrderedWindow | None:
        """The plan if its step has come; None before."""
        if self._plan is None or step < self._due:
            return None
        plan, self._plan = self._plan.result(), None
        return plan

    def drop(self) -> None:
        """The plan is not wanted any more: another one has been made meanwhile."""
        self._plan = None

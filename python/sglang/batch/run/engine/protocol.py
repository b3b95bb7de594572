"""What a run needs of an engine, whatever and wherever it is."""

from __future__ import annotations

from typing import Any, Protocol

from sglang.batch.records import Answer, BatchRequest
from sglang.batch.run.barrier import Barrier


class EngineFailed(Exception):
    """The engine did not start; the message is the engine's."""


class EngineDied(Exception):
    """The engine is gone: no fault of most lines that ran, which stay pending.

    Attributes:
        suspects: ids of the requests that it may have died of; None if nobody knows, none if it was none of
            them.
    """

    def __init__(self, message: str, suspects: frozenset[str] | None = None) -> None:
        super().__init__(message)
        self.suspects = suspects


class Engine(Protocol):
    """Whoever runs requests."""

    async def start(self) -> None:
        """Start it, also again after it has died.

        Raises:
            EngineFailed: it cannot be started.
        """

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run one request to its end; what this raises becomes the request's error record.

        Args:
            request_id: unique among the requests of a run.

        Raises:
            EngineDied: the request may be run again, by an engine that is started anew.
        """

    def barrier(self) -> Barrier:
        """Make a barrier for the engine as it is started now.

        Raises:
            LookupError: this engine lacks what a barrier needs; the message names it.
        """

    async def internal_state(self) -> list[dict[str, Any]]:
        """Ask every data-parallel rank's scheduler for its state.

        Raises:
            EngineDied: nobody is there.
        """

    async def stop(self) -> None:
        """Stop every process of the engine; what is still running is dropped. Safe to call more than once."""

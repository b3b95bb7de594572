"""What a dispatcher needs of whoever answers requests, and what it is told.

A server over HTTP is one (`client`), an actor of Ray with an engine another one (`ray_replicas.replica`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from sglang.batch.records import Answer, BatchRequest

PROBE_SECONDS = 10.0
"""Seconds that a server has to say what it is."""


class Trouble(Enum):
    """Why a request should be sent again."""

    OVERLOADED = "overloaded"  # the server wants fewer
    FAILED = "failed"  # this request, this time
    GONE = "gone"  # nobody listens: the request has reached nobody, or is not why nobody does


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one attempt.

    Attributes:
        answer: what becomes of the request if it is not sent again.
        trouble: None if it need not be.
        wait: seconds that the server wants to be left alone; None if it did not say.
        choices: answers that a request asked for, which share its completion tokens.
    """

    answer: Answer
    trouble: Trouble | None = None
    wait: float | None = None
    choices: int = 1


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says about itself.

    Attributes:
        models: names of its models, its own first; empty if it did not say.
        plans: it is SGLang under blend, which wants to see everything that waits.
        kv_capacity: tokens, None if it did not say.
        first: `priority` of requests that go before all others; None if it knows no priorities.
        states: of its schedulers; empty for servers other than SGLang.
        weight: its share of the requests by what it runs on; None for what the user said.
    """

    models: tuple[str, ...] = ()
    plans: bool = False
    kv_capacity: int | None = None
    first: int | None = None
    states: tuple[dict[str, Any], ...] = ()
    weight: int | None = None


class Unreachable(Exception):
    """A server does not answer; the message says why."""


class Transport(Protocol):
    """The way to one server; made and used in one event loop.

    Attributes:
        url: what the user knows the server by.
    """

    url: str

    async def info(self) -> ServerInfo:
        """Ask the server what it is; one that is gone and can be started again, is.

        Raises:
            Unreachable: nobody answers at all.
        """

    async def send(self, request: BatchRequest, model: str | None, timeout: float | None) -> Reply:
        """Run one attempt of a request.

        Args:
            model: put into bodies that name none.
            timeout: seconds, None for as many as it takes.
        """

    async def reset(self) -> None:
        """Give up what is under way, which ends broken, and begin anew."""

    async def close(self) -> None:
        """End; requests under way end broken."""


def broken(code: str, message: str, trouble: Trouble = Trouble.FAILED) -> Reply:
    """Reply for somebody who has not replied."""
    return Reply(Answer(0, b"{}", code=code, message=message), trouble)


def kv_tokens(states: tuple[dict[str, Any], ...]) -> int | None:
    """Read how many tokens of KV a scheduler holds; None if it did not say."""
    usage = states[0].get("memory_usage") if states else None
    return count(usage.get("token_capacity")) or None if isinstance(usage, dict) else None


def count(value: object) -> int:
    """Read a count of whatever a server says; 0 where it is none."""
    return value if type(value) is int and value >= 0 else 0

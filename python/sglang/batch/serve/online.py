"""Requests of online users, passed through to the engine ahead of all batches.

They wait for nobody here: so many are in flight at most, beside the batches' own, and one more is refused.
Nothing of them is kept but how many tokens each key has used today.
"""

from __future__ import annotations

import re
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import msgspec

from sglang.batch.media import MediaGate, MediaPolicy
from sglang.batch.records import Answer, BatchRequest, Usage
from sglang.batch.reply_usage import ReplyUsage
from sglang.batch.run.engine.supervisor import Supervisor
from sglang.batch.serve.quotas import DAY, OverQuota
from sglang.batch.serve.shared_engine import SharedEngine

DEFAULT_MOST = 64
"""Online requests in flight at most."""

SOON = 1
"""Seconds after which it is worth asking again when there are too many."""

OUTCOMES = ("answered", "refused", "failed", "given_up")
"""How a request may end; the last, because its client is gone."""

STREAMS = ("/v1/chat/completions", "/v1/completions")
"""Endpoints whose replies come in parts if a request wants that."""

Part = Callable[[bytes], object]
"""Takes a server-sent event, its empty line included."""


class OnlineEngine(Protocol):
    """Whoever runs an online request before all others."""

    async def pass_on(self, request: BatchRequest, part: Part | None) -> Answer:
        """Run a request to its end.

        Args:
            part: takes the reply's server-sent events, if it comes as such; None if it must not.
        """


class OwnEngine:
    """The service's own engine.

    Args:
        first: `priority` of requests that go before all others; None if it knows no priorities.
    """

    def __init__(self, engine: Supervisor, first: int | None) -> None:
        self._engine = engine
        self._first = first

    async def pass_on(self, request: BatchRequest, part: Part | None) -> Answer:
        """Run a request to its end; see `OnlineEngine`."""
        if self._first is not None:
            request = replace(request, body={**request.body, "priority": self._first})
        if part is None:
            return await self._engine.answer(request, request.custom_id)
        return await self._engine.stream(request, request.custom_id, part)


class Online:
    """Passes requests through.

    Args:
        shared: the engine as batches share it: a request takes no room there, and is not run while one job
            has the engine for itself.
        media: what requests may name beside data URLs.
        most: requests in flight at most.

    Attributes:
        running: requests in flight.
        outcomes: requests that ended, by OUTCOMES.
        used: tokens of all requests.
    """

    def __init__(self, engine: OnlineEngine, shared: SharedEngine, media: MediaPolicy, most: int) -> None:
        self.running = 0
        self.outcomes = Counter(dict.fromkeys(OUTCOMES, 0))
        self.used = Usage()
        self._engine = engine
        self._shared = shared
        self._gate = MediaGate(self, media)
        self._most = most
        self._parts: dict[str, Part] = {}
        self._day = 0
        self._today: Counter[str] = Counter()

    def tokens_today(self, owner: str) -> int:
        """Count an owner's tokens of this day, since the service has started."""
        return self._of_today()[owner]

    async def run(self, owner: str, url: str, body: dict[str, object], part: Part | None) -> Answer:
        """Run a request at once, to its end.

        Args:
            part: takes the reply's server-sent events; None if the reply is wanted as a whole.

        Raises:
            OverQuota: too many are in flight.
            Busy: the engine starts, or looks for lines that it dies of.
            EngineDied: it has died meanwhile.
        """
        if self.running >= self._most:
            raise OverQuota(f"{self.running} online requests are in flight, as many as there may be", SOON)
        id = uuid.uuid4().hex
        events = None if part is None else _Events(part, wanted=_wants_usage(body))
        if events is not None:
            self._parts[id] = events
            body = {**body, "stream_options": _with_usage(body.get("stream_options"))}
        self.running += 1
        outcome, usage = "failed", Usage()
        try:
            answer = await self._gate.answer(BatchRequest(0, id, url, body), id)
            outcome = "answered" if answer.ok else "refused" if 400 <= answer.status < 500 else "failed"
            usage = answer.usage
            return answer
        except BaseException as error:
            if not isinstance(error, Exception):  # the client has gone, perhaps with all that it wanted
                outcome = "answered" if events is not None and events.complete else "given_up"
            raise
        finally:
            self.running -= 1
            self._parts.pop(id, None)
            if events is not None:
                events.end()
                usage = events.usage
            self.outcomes[outcome] += 1
            self._count(owner, usage)

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run a request whose media are data URLs."""
        part = self._parts.get(request_id)
        return await self._shared.at_once(request_id, lambda: self._engine.pass_on(request, part))

    def _count(self, owner: str, usage: Usage) -> None:
        self.used = Usage(
            self.used.prompt + usage.prompt,
            self.used.cached + usage.cached,
            self.used.completion + usage.completion,
        )
        self._of_today()[owner] += usage.prompt + usage.completion

    def _of_today(self) -> Counter[str]:
        today = int(time.time()) // DAY
        if today != self._day:
            self._day, self._today = today, Counter()
        return self._today


class _Event(msgspec.Struct):
    """Of a server-sent event, what is looked at."""

    usage: ReplyUsage | None = None
    choices: list[msgspec.Raw] = []


class _Events:
    """Cuts a stream into its events, and reads the tokens used from the one that tells them.

    Args:
        part: takes each event.
        wanted: whether the client has asked for that event; it is left out otherwise.

    Attributes:
        usage: tokens; of a stream that was given up, one of each event that came, and no prompt.
        complete: whether the event has come that ends a stream.
    """

    def __init__(self, part: Part, *, wanted: bool) -> None:
        self._part = part
        self._wanted = wanted
        self._rest = b""
        self._events = 0
        self._told: Usage | None = None
        self.complete = False

    @property
    def usage(self) -> Usage:
        return Usage(completion=self._events) if self._told is None else self._told

    def __call__(self, data: bytes) -> None:
        *events, self._rest = re.split(rb"\r?\n\r?\n", self._rest + data)
        for event in events:
            self._take(event)

    def end(self) -> None:
        """Hand out what is left."""
        if self._rest:
            self._take(self._rest)
            self._rest = b""

    def _take(self, event: bytes) -> None:
        if b'"usage"' in event and self._is_usage(event) and not self._wanted:
            return
        self._events += 1
        self.complete = event.removeprefix(b"data:").strip() == b"[DONE]"
        self._part(event + b"\n\n")

    def _is_usage(self, event: bytes) -> bool:
        """Read the tokens, if an event tells them; returns whether it tells nothing else."""
        try:
            told = msgspec.json.decode(event.removeprefix(b"data:"), type=_Event)
        except msgspec.DecodeError:
            return False
        if told.usage is not None:
            self._told = told.usage.usage()
        return told.usage is not None and not told.choices


def _wants_usage(body: dict[str, object]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _with_usage(options: object) -> object:
    """Ask for the tokens, too; what is wrong stays wrong and is refused by the engine."""
    if options is None:
        return {"include_usage": True}
    return {**options, "include_usage": True} if isinstance(options, dict) else options

"""One server over HTTP: what it is, and one request to its end."""

from __future__ import annotations

import contextlib
import email.utils
import errno
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import msgspec

from sglang.batch.records import Answer, BatchRequest
from sglang.batch.reply_usage import reply_usage
from sglang.batch.run.remote.transport import (
    PROBE_SECONDS,
    Reply,
    ServerInfo,
    Trouble,
    Unreachable,
    broken,
    kv_tokens,
)

CONNECT_SECONDS = 30.0
"""Seconds until a connection has to be there."""

IDLE_SECONDS = 4.0
"""Seconds that an idle connection is kept: less than uvicorn's 5, so that none is used as it is closed."""

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which a request is sent again."""

OWN_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL})
"""Errors of a connection that say nothing about the server: this process has too many."""

FIRST = 1 << 62
"""Beyond the `priority` of whatever is not to go first; SGLang's priorities have 64 bits."""

QUOTED = 2000
"""Characters that are kept of an error that is not JSON."""


class Client:
    """Talks to one server, over connections that are kept; made and used in one event loop.

    Args:
        url: of the server, without `/v1`.
        headers: sent with every request.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self.url = url
        self._headers = {"Content-Type": "application/json", **headers}
        self._session = self._connect()

    def _connect(self) -> aiohttp.ClientSession:
        connections = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
        return aiohttp.ClientSession(connector=connections, headers=self._headers, trust_env=True)

    async def close(self) -> None:
        """Close every connection; requests under way end broken."""
        await self._session.close()

    async def reset(self) -> None:
        """Close every connection and begin anew."""
        old, self._session = self._session, self._connect()
        await old.close()

    async def info(self) -> ServerInfo:
        """Ask the server what it is.

        Raises:
            Unreachable: nobody answers at all.
        """
        models = await self._get("/v1/models")
        listed = models.get("data")
        state = await self._get("/get_server_info")
        states = tuple(part for part in _list(state.get("internal_states")) if isinstance(part, dict))
        return ServerInfo(
            models=tuple(
                str(model["id"]) for model in _list(listed) if isinstance(model, dict) and "id" in model
            ),
            plans=state.get("schedule_policy") == "blend",
            kv_capacity=kv_tokens(states),
            first=first_priority(
                state.get("enable_priority_scheduling") is True,
                low_first=state.get("schedule_low_priority_values_first") is True,
            ),
            states=states,
        )

    async def send(
        self,
        request: BatchRequest,
        model: str | None,
        timeout: float | None,
        part: Callable[[bytes], object] | None = None,
    ) -> Reply:
        """Run one attempt of a request.

        Args:
            model: put into bodies that name none.
            timeout: seconds, None for as many as it takes.
            part: takes the parts of a reply that comes as server-sent events; the answer has no body then.
        """
        body = request.body if model is None or "model" in request.body else {"model": model, **request.body}
        # A batch tells its requests apart by custom_id; ids of SGLang's have to be its own.
        content = msgspec.json.encode({name: value for name, value in body.items() if name != "rid"})
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_SECONDS)
        try:
            async with self._session.post(
                self.url + request.url, data=content, timeout=limits, allow_redirects=False
            ) as response:
                if part is not None and response.content_type == "text/event-stream":
                    async for data in response.content.iter_any():
                        part(data)
                    return Reply(Answer(200, b""))
                raw = await response.read()
        except aiohttp.ClientConnectorError as error:
            trouble = Trouble.OVERLOADED if error.os_error.errno in OWN_LIMITS else Trouble.GONE
            return broken("connection_error", f"{self.url}: {error.os_error or error}", trouble)
        except TimeoutError:
            return broken("request_timeout", f"{self.url}: no answer in time")
        except (aiohttp.ClientError, OSError) as error:
            return broken("connection_error", f"{self.url}: {type(error).__name__}: {error}")
        return _read(response.status, response.headers, raw)

    async def _get(self, path: str) -> dict[str, Any]:
        limits = aiohttp.ClientTimeout(total=PROBE_SECONDS)
        try:
            async with self._session.get(self.url + path, timeout=limits, allow_redirects=False) as response:
                raw = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(f"{self.url}: {str(error) or type(error).__name__}") from error
        found = _decode(raw) if response.status == 200 else None
        return found if isinstance(found, dict) else {}


def first_priority(enabled: bool, *, low_first: bool) -> int | None:
    """Name the `priority` of requests that SGLang lets go before all others.

    >>> first_priority(True, low_first=False) > 0 > first_priority(True, low_first=True)
    True

    Args:
        enabled: whether it knows priorities.
        low_first: whether low values go first.

    Returns:
        None without priorities.
    """
    if not enabled:
        return None
    return -FIRST if low_first else FIRST


def _read(status: int, headers: Mapping[str, str], raw: bytes) -> Reply:
    """Read a response that came in whole."""
    body = _decode(raw)
    if 200 <= status < 300:
        if not isinstance(body, dict):
            return broken("invalid_response", f"status {status} without a JSON object", Trouble.FAILED)
        choices = [choice for choice in _list(body.get("choices")) if isinstance(choice, dict)]
        line = raw if b"\n" not in raw else msgspec.json.encode(body)
        answer = Answer(200, line, reply_usage(body.get("usage")))
        if any(choice.get("finish_reason") == "abort" for choice in choices):
            message = "the server aborted the request before its end"
            aborted = Answer(200, answer.body, answer.usage, "aborted", message)
            return Reply(aborted, Trouble.FAILED)
        return Reply(answer, choices=max(len(choices), 1))
    refusal = _refusal(status, body, raw)
    if status not in RETRIED:
        return Reply(refusal)
    trouble = Trouble.OVERLOADED if status in (429, 503) else Trouble.FAILED
    return Reply(refusal, trouble, _retry_after(headers.get("Retry-After")))


def _refusal(status: int, body: object, raw: bytes) -> Answer:
    """Read an error in the form of OpenAI's API, of SGLang's, or of whatever stands before them."""
    fields = body if isinstance(body, dict) else {}
    error = fields.get("error") if isinstance(fields.get("error"), dict) else fields
    assert isinstance(error, dict)
    message = error.get("message")
    code = error.get("type")
    if not isinstance(message, str):
        message = raw[:QUOTED].decode(errors="replace") or f"status {status}"
        fields = {"message": message, "type": code, "code": status}
    return Answer(
        status,
        msgspec.json.encode(fields),
        code=code if isinstance(code, str) and code else f"http_{status}",
        message=message,
    )


def _retry_after(value: str | None) -> float | None:
    """Read the header: seconds, or a date."""
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        return max(float(value), 0.0) if math.isfinite(float(value)) else None
    with contextlib.suppress(ValueError, TypeError):
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _decode(raw: bytes) -> object:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None

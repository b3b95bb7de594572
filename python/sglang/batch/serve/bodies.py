"""Bodies of requests have a bound: uploads have one of their own, all others this."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST = 32 << 20
"""Bytes of a body at most, uploads apart."""


class Bounded:
    """Middleware that ends a body which is too long with status 413, before it is in memory."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["path"] == "/v1/files":
            await self._app(scope, receive, send)
            return
        left = MOST

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, f"the body has more than {MOST:,} bytes")
            return message

        await self._app(scope, bounded, send)

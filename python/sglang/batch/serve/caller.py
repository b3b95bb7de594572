"""Who calls, and which service: what routes depend on."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from sglang.batch.serve.errors import Refused
from sglang.batch.serve.service import Service


async def service_of(request: Request) -> Service:
    """Tell which service a request has reached; no `def`, which FastAPI calls in a thread."""
    service: Service = request.app.state.service
    return service


async def owner_of(request: Request) -> str:
    """Tell whose things a caller sees.

    Raises:
        Refused: there are keys, and this is none of them.
    """
    service: Service = request.app.state.service
    owner = service.keys.owner(request.headers.get("authorization"))
    if owner is None:
        # A browser asks for the page's key, a client has one.
        scheme = "Basic" if request.url.path == "/" else "Bearer"
        headers = {"WWW-Authenticate": f'{scheme} realm="sglang-batch"'}
        raise Refused(401, "the API key is missing or unknown", code="invalid_api_key", headers=headers)
    return owner


Owner = Annotated[str, Depends(owner_of)]
Running = Annotated[Service, Depends(service_of)]

"""The routes: `/v1/files`, `/v1/batches` and `/v1/models`, as OpenAI's clients call them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from openai.types import Batch, FileDeleted, FileObject, Model
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from sglang.batch.endpoints import ENDPOINTS
from sglang.batch.serve import bodies, online_routes
from sglang.batch.serve.caller import Owner, Running
from sglang.batch.serve.errors import ERRORS, Refused, add_error_handlers
from sglang.batch.serve.forecast import Forecast
from sglang.batch.serve.log import FORMATS, Requests
from sglang.batch.serve.metrics import registry
from sglang.batch.serve.objects import Page, batch_object, file_object, page
from sglang.batch.serve.priority import weight
from sglang.batch.serve.quotas import check_batch, check_upload
from sglang.batch.serve.reserve import Reserve
from sglang.batch.serve.service import Service
from sglang.batch.serve.status_page import PAGE_HEADERS, render
from sglang.batch.serve.store import BatchRow, CreateBatch, NotFound
from sglang.batch.serve.tracing import Tracing
from sglang.batch.serve.upload import BadUpload, TooLarge, receive

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

LONGEST_WINDOW = 30 * 86400
"""Seconds that a batch may take at most."""

SHORTEST_KEPT, LONGEST_KEPT = 3600, 2_592_000
"""Seconds after which files may expire."""

PAIRS, KEY, VALUE = 16, 64, 512
"""Metadata of a batch at most: pairs, characters of a key and of a value."""


class ExpiresAfter(BaseModel):
    """When files expire."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=SHORTEST_KEPT, le=LONGEST_KEPT)


class NewBatch(BaseModel):
    """What a batch is created with."""

    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=KEY)], Annotated[str, Field(max_length=VALUE)]],
            Field(max_length=PAIRS),
        ]
        | None
    ) = None
    output_expires_after: ExpiresAfter | None = None


UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer"},
                    },
                }
            }
        },
    }
}
"""What an upload is in the OpenAPI document: the form is read as it comes, not by FastAPI."""

router = APIRouter(prefix="/v1", responses=ERRORS)
seen = APIRouter(include_in_schema=False)


def make_app(service: Service, log_format: str = FORMATS[0], tracing: Tracing | None = None) -> FastAPI:
    """Make the application.

    Args:
        log_format: of what is told of requests, see `log.FORMATS`.
        tracing: makes spans of requests.
    """
    app = FastAPI(title="sglang-batch serve", docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(router)
    app.include_router(online_routes.router)
    app.include_router(seen)
    app.add_middleware(bodies.Bounded)
    app.add_middleware(Requests, style=log_format)
    add_error_handlers(app)
    if tracing is not None:
        tracing.watch(app)
    for path in app.openapi()["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # FastAPI's own, which `_invalid` replaces
    return app


# Files.


@router.post("/files", openapi_extra=UPLOAD)
async def upload_file(request: Request, service: Running, owner: Owner) -> FileObject:
    """Take a file in."""
    left = check_upload(service.quotas, service.store, owner)
    limit = service.file_bytes if left is None else min(left, service.file_bytes)
    try:
        uploaded = await receive(
            request.headers.get("content-type"),
            _leaving(service.reserve, request.stream()),
            service.store.uploads,
            limit=limit,
        )
    except BadUpload as error:
        raise Refused(400, str(error)) from error
    except TooLarge as error:
        raise Refused(413, f"file: has more than {limit:,} bytes", "file") from error
    try:
        if (purpose := uploaded.fields.get("purpose")) != "batch":
            raise Refused(400, "purpose: must be batch", "purpose")
        row = service.store.add_upload(
            owner,
            uploaded.path,
            filename=uploaded.filename or "",
            purpose=purpose,
            expires_after=_expires_after(uploaded.fields),
        )
    except BaseException:
        uploaded.path.unlink(missing_ok=True)
        raise
    return file_object(row)


async def _leaving(reserve: Reserve, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        reserve.check()
        yield chunk


def _expires_after(fields: dict[str, str]) -> int | None:
    anchor, seconds = (fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return None
    number = int(seconds) if seconds and re.fullmatch(r"[0-9]{1,9}", seconds) else 0
    if anchor != "created_at" or not SHORTEST_KEPT <= number <= LONGEST_KEPT:
        raise Refused(
            400,
            f"expires_after: anchor must be created_at, seconds from {SHORTEST_KEPT} to {LONGEST_KEPT}",
            "expires_after",
        )
    return number


@router.get("/files")
async def list_files(
    service: Running,
    owner: Owner,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> Page[FileObject]:
    """List files, a page at a time."""
    rows = service.store.list_files(
        owner, purpose=purpose, after=after, limit=limit + 1, descending=order == "desc"
    )
    return page([file_object(row) for row in rows], limit)


@router.get("/files/{id}")
async def retrieve_file(service: Running, owner: Owner, id: str) -> FileObject:
    """Describe a file."""
    return file_object(service.store.file(owner, id))


@router.get("/files/{id}/content", response_class=FileResponse)
async def file_content(service: Running, owner: Owner, id: str) -> FileResponse:
    """Send what is in a file."""
    path = service.store.path(service.store.file(owner, id))
    return FileResponse(path, media_type="application/octet-stream")


@router.delete("/files/{id}")
async def delete_file(service: Running, owner: Owner, id: str) -> FileDeleted:
    """Delete a file. A batch of it goes on."""
    service.store.delete_file(owner, id)
    return FileDeleted(id=id, object="file", deleted=True)


# Batches.


@router.post("/batches")
async def create_batch(service: Running, owner: Owner, body: NewBatch, response: Response) -> Batch:
    """Begin a batch; the same request within minutes is the same batch.

    The header X-Forecast-End has the second at which it is expected to end, as far as anything is known.
    """
    if body.endpoint not in ENDPOINTS:
        raise Refused(400, f"endpoint: must be one of {', '.join(ENDPOINTS)}", "endpoint")
    file = service.store.file(owner, body.input_file_id)
    if file.purpose != "batch":
        raise Refused(400, "input_file_id: the file's purpose must be batch", "input_file_id")
    try:
        weight(body.metadata)
    except ValueError as error:
        raise Refused(400, str(error), "metadata") from error
    kept = body.output_expires_after
    wanted = CreateBatch(
        input_file_id=body.input_file_id,
        endpoint=body.endpoint,
        completion_window=body.completion_window,
        window=_seconds(body.completion_window),
        metadata=body.metadata,
        output_expires=None if kept is None else kept.seconds,
    )
    row = service.store.repeated_batch(owner, wanted)
    if row is None:
        check_batch(
            service.quotas, service.store, owner, service.batches.tallies(), service.tokens_online(owner)
        )
        row = service.store.create_batch(owner, wanted)
    service.batches.begin(row.id)
    forecast = await service.batches.forecast(row)
    if forecast.expected_end is not None:
        response.headers["X-Forecast-End"] = str(forecast.expected_end)
    return _shown(service, row)


@router.get("/batches/{id}/forecast")
async def forecast_batch(service: Running, owner: Owner, id: str) -> Forecast:
    """Tell when a batch is expected to end, given all that is queued, and what it takes."""
    return await service.batches.forecast(service.store.batch(id, owner))


def _seconds(window: str) -> int:
    """Read a completion window.

    >>> _seconds("15m")
    900
    """
    found = re.fullmatch(r"([0-9]{1,7})([smhd])", window)
    seconds = int(found[1]) * UNITS[found[2]] if found else 0
    if not 1 <= seconds <= LONGEST_WINDOW:
        raise Refused(400, "completion_window: must be like 15m, 24h or 7d, 30d at most", "completion_window")
    return seconds


@router.get("/batches")
async def list_batches(
    service: Running,
    owner: Owner,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Page[Batch]:
    """List batches, the newest first, a page at a time."""
    rows = service.store.list_batches(owner, after=after, limit=limit + 1)
    return page([_shown(service, row) for row in rows], limit)


@router.get("/batches/{id}")
async def retrieve_batch(service: Running, owner: Owner, id: str) -> Batch:
    """Tell how far a batch is."""
    return _shown(service, service.store.batch(id, owner))


@router.post("/batches/{id}/cancel")
async def cancel_batch(service: Running, owner: Owner, id: str) -> Batch:
    """Let a batch run no more requests than those that run; what is answered is kept."""
    row = service.store.batch(id, owner)
    if not service.batches.cancel(row.id) and row.status not in ("cancelling", "cancelled"):
        raise Refused(400, f"the batch is {row.status} and cannot be cancelled")
    return _shown(service, service.store.batch(row.id))


def _shown(service: Service, row: BatchRow) -> Batch:
    return batch_object(row, service.batches.tally(row.id))


# Models.


@router.get("/models")
async def list_models(service: Running, owner: Owner) -> Page[Model]:
    """List the models."""
    return page([_model(service, name) for name in service.models], len(service.models))


@router.get("/models/{name:path}")
async def retrieve_model(service: Running, owner: Owner, name: str) -> Model:
    """Describe a model."""
    if name not in service.models:
        raise NotFound(f"there is no model {name!r}")
    return _model(service, name)


def _model(service: Service, name: str) -> Model:
    return Model(id=name, object="model", created=service.started, owned_by="sglang-batch")


# What operators see.


@seen.get("/metrics")
async def metrics(service: Running) -> Response:
    """Tell Prometheus how the service is doing; without a key, for it names nobody's batches."""
    return Response(generate_latest(registry(service)), media_type=CONTENT_TYPE_LATEST)


@seen.get("/health")
async def health(service: Running) -> JSONResponse:
    """Tell whether the engine is up: 200, or 503 while it starts."""
    up = service.engine_up()
    return JSONResponse({"engine": "up" if up else "starting"}, 200 if up else 503)


@seen.get("/")
async def status_page(service: Running, owner: Owner) -> HTMLResponse:
    """Show the caller's batches as a page."""
    return HTMLResponse(render(service, owner), headers=PAGE_HEADERS)

"""Rows as the objects of OpenAI's API, in the types of its own client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

from openai.types import Batch, BatchError, BatchRequestCounts, BatchUsage, FileObject
from openai.types.batch import Errors
from pydantic import BaseModel

from sglang.batch.run.tally import Tally
from sglang.batch.serve.store import BatchRow, Counts, FileRow

T = TypeVar("T", bound=BaseModel)


class Page(BaseModel, Generic[T]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool
    first_id: str | None
    last_id: str | None


def page(rows: Sequence[T], limit: int) -> Page[T]:
    """Make a page of rows, of which one more than `limit` was read to know whether there are more."""
    data = list(rows[:limit])
    ids: list[str] = [getattr(row, "id") for row in data]  # noqa: B009
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return Page(data=data, has_more=len(rows) > limit, first_id=first, last_id=last)


def file_object(row: FileRow) -> FileObject:
    """Make the object of a file."""
    return FileObject.model_validate(
        {
            "id": row.id,
            "object": "file",
            "bytes": row.bytes,
            "created_at": row.created_at,
            "expires_at": row.expires_at,
            "filename": row.filename,
            "purpose": row.purpose,
            "status": "processed",
        }
    )


def batch_object(row: BatchRow, live: Tally | None) -> Batch:
    """Make the object of a batch.

    Args:
        live: what is done by now, while the batch is run.
    """
    done = counts(live) if live is not None else row.counts
    used = usage(live) if live is not None else row.usage
    errors = [BatchError.model_validate(error) for error in row.errors or ()]
    return Batch.model_validate(
        {
            "id": row.id,
            "object": "batch",
            "endpoint": row.request.endpoint,
            "input_file_id": row.request.input_file_id,
            "completion_window": row.request.completion_window,
            "metadata": row.request.metadata,
            "status": row.status,
            **row.times,
            "model": row.model,
            "output_file_id": row.output_file_id,
            "error_file_id": row.error_file_id,
            "errors": Errors(object="list", data=errors) if errors else None,
            "request_counts": BatchRequestCounts(
                total=done.total, completed=done.completed, failed=done.failed
            ),
            "usage": None if used is None else BatchUsage.model_validate(used),
        }
    )


def counts(tally: Tally) -> Counts:
    """Count lines as the API does."""
    return Counts(total=tally.lines, completed=tally.answered, failed=tally.failed)


def usage(tally: Tally) -> dict[str, object]:
    """Count tokens as the API does; those of reasoning are among the output."""
    return {
        "input_tokens": tally.prompt_tokens,
        "input_tokens_details": {"cached_tokens": tally.cached_tokens},
        "output_tokens": tally.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": tally.reasoning_tokens},
        "total_tokens": tally.tokens,
    }

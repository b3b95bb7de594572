"""Spans for OpenTelemetry: requests of the API, and what becomes of batches; none unless they are asked for.

A batch is a span below the request that created it, or one without a parent where the service goes on with
it. Below it are `batch.validate`, `batch.wait`, `batch.run` (its lines are with the engine) and
`batch.finish`. Attributes are ids, numbers, states and names of endpoints, never what is in a request.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from sglang.batch.usage import BadUsage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SERVICE = "sglang-batch"
"""Name of the service, unless OTEL_SERVICE_NAME has another."""

PROTOCOL = "http/protobuf"
"""Of OTLP, the protocol that is spoken."""

UNSEEN = "/health$,/metrics$"
"""Paths whose requests make no spans: somebody asks every few seconds."""

Note = Callable[[str, str | int], None]
"""Sets an attribute of a span."""


class Tracing:
    """Makes spans.

    Args:
        provider: of OpenTelemetry; without one there are no spans.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = None if provider is None else provider.get_tracer("sglang.batch.serve")

    def watch(self, app: FastAPI) -> None:
        """Make a span of each request."""
        if self._provider is not None:
            from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

            FastAPIInstrumentor.instrument_app(
                app,
                tracer_provider=self._provider,
                excluded_urls=UNSEEN,
                exclude_spans=["receive", "send"],
            )

    @contextmanager
    def span(self, name: str, **attributes: str | int) -> Iterator[Note]:
        """Make a span of what is done meanwhile; of an error it says the type and nothing else."""
        if self._tracer is None:
            yield lambda key, value: None
            return
        from opentelemetry.trace import Status, StatusCode

        with self._tracer.start_as_current_span(
            name,
            attributes={f"batch.{key}": value for key, value in attributes.items()},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield lambda key, value: span.set_attribute(f"batch.{key}", value)
            except Exception as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    def event(self, text: str) -> None:
        """Let the span that is under way have what the operator is told."""
        if self._tracer is not None:
            from opentelemetry import trace

            trace.get_current_span().add_event(text)

    def shutdown(self) -> None:
        """Send what was not sent yet."""
        if self._provider is not None:
            self._provider.shutdown()


def otlp() -> Tracing:
    """Send spans by OTLP, as the OTEL_* variables of the environment say.

    Raises:
        BadUsage: OpenTelemetry is not installed, or another protocol is asked for.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation import fastapi  # noqa: F401
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise BadUsage(
            f"--otel: {error.name} is not installed; pip install 'sglang-blend[otel]', or leave the flag out"
        ) from error
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if os.environ.get(name, PROTOCOL) != PROTOCOL:
            raise BadUsage(f"--otel: {name} is {os.environ[name]}; spans are sent by {PROTOCOL} only")
    # The environment once more, so that a name in it comes before ours.
    resource = Resource.create({"service.name": SERVICE}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)

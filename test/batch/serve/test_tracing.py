"""Spans for OpenTelemetry: one for each request and batch, with nothing of prompts and answers."""

import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from echo_jobs import request
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from services import EchoService, create, lines, wait_for

from sglang.batch.serve.api import make_app
from sglang.batch.serve.tracing import Tracing, otlp
from sglang.batch.usage import BadUsage


class Collector:
    """Takes spans by OTLP over HTTP."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        received = self.raw

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                received.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def spans(self) -> list[Any]:
        return [
            span
            for raw in self.raw
            for resource in ExportTraceServiceRequest.FromString(raw).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def attributes(span: Any) -> dict[str, str | int]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


def test_a_batch_is_a_span_below_the_request_that_created_it_and_no_prompt_is_sent(
    service: EchoService, collector: Collector
) -> None:
    client = service.start("--otel")
    health = service.url.removesuffix("/v1") + "/health"
    while httpx.get(health).status_code != 200:
        time.sleep(0.02)
    client.completions.create(model="echo", prompt="another secret")
    content = lines(3, "a secret prompt") + request("bad", "kill by this secret")
    batch = wait_for(client, create(client, content).id)
    assert service.terminate() == 0
    spans = {span.name: span for span in collector.spans()}
    created, carried = spans["POST /v1/batches"], spans["batch"]
    assert (carried.trace_id, carried.parent_span_id) == (created.trace_id, created.span_id)
    expected = {
        "id": batch.id,
        "endpoint": "/v1/completions",
        "status": "completed",
        "answered": 3,
        "failed": 1,
    }
    assert attributes(carried) == {f"batch.{name}": value for name, value in expected.items()}
    steps = [spans[f"batch.{step}"] for step in ("validate", "wait", "run", "finish")]
    assert {step.parent_span_id for step in steps} == {carried.span_id}
    times = [time for step in steps for time in (step.start_time_unix_nano, step.end_time_unix_nano)]
    assert times == sorted(times)
    assert attributes(steps[2]) == {"batch.lines": 4}
    assert any("starting the engine again" in event.name for event in steps[2].events)
    assert "POST /v1/completions" in spans
    assert not any("/health" in name for name in spans)
    assert not any(b"secret" in raw for raw in collector.raw)
    assert any(b"sglang-batch" in raw for raw in collector.raw)


def test_a_service_that_goes_on_has_a_span_without_a_parent(
    service: EchoService, collector: Collector
) -> None:
    client = service.start("--echo-seconds", "0.3", "--pool", "1")
    batch = create(client, lines(10))
    service.terminate()
    client = service.start("--otel")
    wait_for(client, batch.id)
    service.terminate()
    (carried,) = [span for span in collector.spans() if span.name == "batch"]
    assert (attributes(carried)["batch.id"], carried.parent_span_id) == (batch.id, b"")


def test_of_an_error_a_span_has_the_type_only() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)

    def fail() -> None:
        with tracing.span("batch", id="1") as note:
            note("lines", 2)
            tracing.event("told")
            raise KeyError("a secret")

    with pytest.raises(KeyError):
        fail()
    (span,) = exporter.get_finished_spans()
    assert dict(span.attributes or {}) == {"batch.id": "1", "batch.lines": 2}
    assert (span.status.status_code.name, span.status.description) == ("ERROR", "KeyError")
    assert [event.name for event in span.events] == ["told"]
    starting: Any = SimpleNamespace(engine_up=lambda: False, started=1, models=())
    app = TestClient(make_app(starting, tracing=tracing))
    assert app.get("/health").status_code == 503
    assert len(exporter.get_finished_spans()) == 1


def test_without_it_being_asked_for_nothing_of_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("opentelemetry", "opentelemetry.trace", "opentelemetry.instrumentation.fastapi"):
        monkeypatch.setitem(sys.modules, name, None)
    tracing = Tracing()
    tracing.watch(FastAPI())
    with tracing.span("batch", id="1") as note:
        note("lines", 1)
        tracing.event("told")
    tracing.shutdown()


def test_what_cannot_be_sent_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(BadUsage, match=r"OTEL_EXPORTER_OTLP_PROTOCOL is grpc; .* http/protobuf only"):
        otlp()
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(BadUsage, match=r"not installed; pip install 'sglang-blend\[otel\]'"):
        otlp()


def test_the_environment_may_name_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    def named() -> object:
        tracing = otlp()
        try:
            assert tracing._provider is not None
            return tracing._provider.resource.attributes["service.name"]
        finally:
            tracing.shutdown()

    assert named() == "sglang-batch"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=nightly")
    assert named() == "nightly"

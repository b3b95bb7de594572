"""Whatever requests the OpenAPI document allows, and many that it does not, get a reply that it describes."""

from __future__ import annotations

import time
from collections import Counter

import pytest
import schemathesis
from echo_jobs import SECONDS
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from services import EchoService

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 60
"""Requests of each kind to each operation."""


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_no_request_gets_an_error_of_the_server(mode: GenerationMode, service: EchoService) -> None:
    service.start()
    deadline = time.monotonic() + SECONDS
    while "the engine is up" not in service.said.read_text():  # online requests get a 503 before
        assert time.monotonic() < deadline
        time.sleep(0.05)
    document = schemathesis.openapi.from_url(f"{service.url.removesuffix('/v1')}/openapi.json")
    asked: Counter[str] = Counter()

    def ask(cases: SearchStrategy[Case]) -> None:
        @seed(1)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=cases)
        def check(case: Case) -> None:
            response = case.call(timeout=SECONDS)
            case.validate_response(response, checks=CHECKS)
            asked[case.operation.label] += 1

        check()

    for found in document.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body and not operation.query:
            continue  # nothing of it can be wrong
        ask(operation.as_strategy(generation_mode=mode))
    assert len(asked) >= 10
    assert service.process is not None
    assert service.process.poll() is None

"""Input lines read, output lines written: nothing is lost, whatever a line contains."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import FakeAnswerer, job, line, work

from sglang.batch.endpoints import ENDPOINTS
from sglang.batch.input.lines import bare
from sglang.batch.records import (
    Answer,
    BatchFailure,
    BatchRequest,
    answer_record,
    custom_id_hash,
    failure_record,
    parse_line,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
nearly_valid = st.fixed_dictionaries(
    {},
    optional={
        "custom_id": st.sampled_from(["a", "b", ""]) | json_values,
        "method": st.sampled_from(["POST", "GET"]) | json_values,
        "url": st.sampled_from([*ENDPOINTS, "/v1/images"]) | json_values,
        "body": st.dictionaries(st.sampled_from(["prompt", "stream", "n"]), json_values) | json_values,
    },
).map(lambda record: json.dumps(record).encode())
raw_lines = (st.binary(max_size=80) | nearly_valid).map(lambda raw: raw.replace(b"\n", b" ") + b"\n")


@settings(deadline=None)
@given(st.lists(raw_lines, max_size=8))
def test_every_line_that_is_not_blank_gets_exactly_one_output_line(lines: list[bytes]) -> None:
    written: list[bytes] = []
    asyncio.run(job(FakeAnswerer(), written.append, pool=3).run(work(lines)))

    records = [json.loads(record) for record in written]
    assert all(record.endswith(b"\n") and record.count(b"\n") == 1 for record in written)
    assert len(records) == sum(1 for raw in lines if bare(raw))
    failed = [record["error"]["line"] for record in records if record["error"] is not None]
    answered = [record["custom_id"] for record in records if record["error"] is None]
    assert len(set(failed)) == len(failed), "a line has two error records"
    assert len(set(answered)) == len(answered), "a custom_id is answered twice"
    assert len({record["id"] for record in records}) == len(records)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"method": "GET"}, "invalid_method"),
        ({"method": None}, "invalid_method"),
        ({"url": "/v1/images"}, "invalid_url"),
        ({"url": 3}, "invalid_url"),
        ({"body": None}, "invalid_body"),
        ({"body": "prompt"}, "invalid_body"),
        ({"body": {"prompt": "x", "stream": True}}, "stream_not_supported"),
        ({"url": "/v1/embeddings", "body": {"input": "x", "stream": True}}, "stream_not_supported"),
        ({"url": "/v1/responses", "body": {"input": "x", "background": True}}, "background_not_supported"),
        (
            {"url": "/v1/responses", "body": {"input": "x", "previous_response_id": "resp_1"}},
            "previous_response_id_not_supported",
        ),
        ({"custom_id": None}, "missing_custom_id"),
        ({"custom_id": 7}, "missing_custom_id"),
        ({"custom_id": ""}, "missing_custom_id"),
    ],
)
def test_a_wrong_field_is_named_with_its_line_number(change: dict[str, Any], code: str) -> None:
    failure = parse_line(17, line("a", **change))
    assert isinstance(failure, BatchFailure)
    assert (failure.code, failure.line) == (code, 17)
    assert "line 17" in failure.message
    assert failure.custom_id == (None if "custom_id" in change else "a")


@pytest.mark.parametrize("raw", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"custom_id": "\\ud800"}', b"NaN"])
def test_what_is_not_json_is_one_failure(raw: bytes) -> None:
    failure = parse_line(1, raw)
    assert isinstance(failure, BatchFailure)
    assert failure.code == "invalid_json_line"


def test_stream_false_is_no_stream() -> None:
    assert isinstance(parse_line(1, line("a", body={"prompt": "x", "stream": False})), BatchRequest)


def test_an_answered_record_has_the_fields_of_the_openai_batch_api() -> None:
    request = BatchRequest(3, "a", "/v1/completions", {})
    record = json.loads(answer_record(request, Answer(200, b'{"choices": [1]}')))
    assert record["id"].startswith("batch_req_")
    assert record["custom_id"] == "a"
    assert record["error"] is None
    assert record["response"]["status_code"] == 200
    assert record["response"]["request_id"].startswith("req_")
    assert record["response"]["body"] == {"choices": [1]}


@pytest.mark.parametrize(
    "body",
    [
        b'{"message": "too long", "type": "T", "param": "p", "code": 400}',
        b'{"error": {"message": "too long"}}',
    ],
)
def test_a_refusal_is_a_response_with_its_status_and_no_error(body: bytes) -> None:
    refusal = Answer(400, body, code="BadRequestError", message="too long")
    record = json.loads(answer_record(BatchRequest(3, "a", "/v1/completions", {}), refusal))
    assert record["error"] is None
    assert record["response"]["status_code"] == 400
    assert record["response"]["body"]["error"]["message"] == "too long"


def test_an_aborted_request_is_an_error_without_a_response() -> None:
    aborted = Answer(200, b"{}", code="aborted", message="the engine aborted it")
    record = json.loads(answer_record(BatchRequest(3, "a", "/v1/completions", {}), aborted, file="b.jsonl"))
    assert record["response"] is None
    assert record["error"] == {
        "code": "aborted",
        "message": "the engine aborted it",
        "line": 3,
        "file": "b.jsonl",
    }


@given(st.text(min_size=1))
def test_a_custom_id_has_one_hash_however_it_is_written(custom_id: str) -> None:
    plain = json.dumps({"custom_id": custom_id}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    escaped = json.dumps({"body": [1, {"custom_id": 2}], "custom_id": custom_id}).encode()
    parsed = parse_line(1, escaped)
    assert (custom_id_hash(escaped) is None) == (parsed.custom_id is None)
    assert custom_id_hash(plain) in (custom_id_hash(escaped), None)


@pytest.mark.parametrize(
    "raw", [b"{", b"[]", b"null", b'{"custom_id": 3}', b'{"custom_id": ""}', b"[" * 100_000]
)
def test_what_has_no_custom_id_has_no_hash(raw: bytes) -> None:
    assert custom_id_hash(raw) is None


def test_a_line_that_was_not_run_has_no_response() -> None:
    record = json.loads(failure_record(BatchFailure(4, None, "invalid_json_line", "line 4 is not JSON")))
    assert record["response"] is None
    assert record["custom_id"] is None
    assert record["error"]["line"] == 4

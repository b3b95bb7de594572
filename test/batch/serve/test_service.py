"""The official client against a real service: upload, create, poll, download, cancel, page."""

import hashlib
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from echo_jobs import SECONDS, request
from services import EchoService, assert_whole, counts, create, lines, records, wait_for, wait_until


def test_a_batch_is_uploaded_run_and_downloaded(service: EchoService) -> None:
    client = service.start()
    content = lines(20) + request("bad", "refuse it") + request("worse", "raise it")
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    assert (file.bytes, file.filename, file.status) == (len(content), "in.jsonl", "processed")
    assert client.files.wait_for_processing(file.id).id == file.id
    assert client.files.content(file.id).read() == content
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h", metadata={"a": "b"}
    )
    assert (made.status, counts(made), made.metadata) == ("validating", (0, 0, 0), {"a": "b"})
    assert made.expires_at == made.created_at + 24 * 3600
    batch = wait_for(client, made.id)
    assert (batch.status, counts(batch)) == ("completed", (22, 20, 2))
    assert_whole(client, batch, [*(f"r{i}" for i in range(20)), "bad", "worse"])
    errors = {record["custom_id"]: record for record in records(client, batch.error_file_id)}
    assert errors["bad"]["response"]["status_code"] == 400
    assert (errors["worse"]["response"], errors["worse"]["error"]["code"]) == (None, "internal_error")
    usage: Any = batch.to_dict()["usage"]  # older clients have no type for it
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (200, 40, 240)
    assert usage["input_tokens_details"] == {"cached_tokens": 80}
    assert usage["output_tokens_details"] == {"reasoning_tokens": 20}
    assert batch.in_progress_at is not None
    assert batch.finalizing_at is not None
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= (batch.completed_at or 0)
    assert (batch.failed_at, batch.cancelled_at, batch.expired_at, batch.errors) == (None,) * 4
    output = client.files.retrieve(batch.output_file_id or "")
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert [listed.id for listed in client.batches.list()] == [batch.id]
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").id == "echo"
    assert "refuse it" not in service.said.read_text()


def test_lines_and_lists_have_the_form_that_clients_read(service: EchoService) -> None:
    client = service.start()
    batch = wait_for(
        client, create(client, lines(1) + request("bad", "refuse") + request("worse", "raise")).id
    )
    (answered,) = records(client, batch.output_file_id)
    assert answered.keys() == {"id", "custom_id", "response", "error"}
    assert answered["id"].startswith("batch_req_")
    assert answered["response"].keys() == {"status_code", "request_id", "body"}
    assert (answered["response"]["status_code"], answered["error"]) == (200, None)
    failed = {record["custom_id"]: record for record in records(client, batch.error_file_id)}
    assert failed["bad"]["error"] is None
    assert failed["bad"]["response"]["body"]["error"]["message"]
    assert failed["worse"]["response"] is None
    assert {"code", "message"} <= failed["worse"]["error"].keys()
    binary = httpx.get(
        f"{service.url}/files/{batch.output_file_id}/content", headers={"Accept": "application/binary"}
    )
    assert binary.status_code == 200
    listed = httpx.get(f"{service.url}/files", params={"purpose": "batch_output", "limit": 1}).json()
    assert (listed["object"], listed["has_more"], len(listed["data"])) == ("list", True, 1)
    assert listed["last_id"] == listed["data"][-1]["id"]


def test_all_requests_failing_is_completed_without_an_output(service: EchoService) -> None:
    client = service.start()
    batch = wait_for(client, create(client, lines(3, "refuse")).id)
    assert (batch.status, counts(batch), batch.output_file_id) == ("completed", (3, 0, 3), None)
    assert_whole(client, batch, ["r0", "r1", "r2"])


def test_bad_content_fails_the_batch_with_all_that_is_wrong(service: EchoService) -> None:
    client = service.start()
    content = (
        request("a") + b"{nonsense\n" + request("a") + request("c").replace(b"completions", b"embeddings")
    )
    batch = wait_for(client, create(client, content).id)
    assert (batch.status, counts(batch), batch.output_file_id) == ("failed", (0, 0, 0), None)
    assert batch.errors is not None
    assert batch.failed_at is not None
    found = [(error.code, error.line) for error in batch.errors.data or ()]
    assert found == [("invalid_json_line", 2), ("duplicate_custom_id", 3), ("url_mismatch", 4)]
    assert service.computed().total() == 0
    service.terminate()  # whoever asks may be told before its folder is gone
    assert list((service.store / "batches").iterdir()) == []


def test_cancelled_a_batch_keeps_what_is_answered(service: EchoService) -> None:
    client = service.start("--echo-seconds", "0.4", "--pool", "10")
    made = create(client, lines(300))
    wait_until(client, made.id, lambda batch: counts(batch)[1] > 5)
    assert client.batches.cancel(made.id).status == "cancelling"
    batch = wait_for(client, made.id)
    assert batch.status == "cancelled"
    assert batch.cancelling_at is not None
    assert 5 < counts(batch)[1] < 300
    assert_whole(client, batch, [f"r{i}" for i in range(300)])
    codes = {record["error"]["code"] for record in records(client, batch.error_file_id)}
    assert codes == {"batch_cancelled"}
    assert client.batches.cancel(made.id).status == "cancelled"
    assert service.computed().total() == counts(batch)[1]


def test_a_batch_that_has_ended_cannot_be_cancelled(service: EchoService) -> None:
    client = service.start()
    batch = wait_for(client, create(client, lines(1)).id)
    with pytest.raises(openai.BadRequestError, match="completed"):
        client.batches.cancel(batch.id)


def test_when_its_window_is_over_a_batch_expires(service: EchoService) -> None:
    client = service.start("--echo-seconds", "0.5", "--pool", "2")
    made = create(client, lines(100), completion_window="2s")
    batch = wait_for(client, made.id)
    assert (batch.status, batch.expires_at) == ("expired", made.created_at + 2)
    assert batch.expired_at is not None
    assert counts(batch)[1] < 100
    assert_whole(client, batch, [f"r{i}" for i in range(100)])
    codes = {record["error"]["code"] for record in records(client, batch.error_file_id)}
    assert codes == {"batch_expired"}


def test_a_repeated_create_is_the_same_batch(service: EchoService) -> None:
    client = service.start()
    file = client.files.create(file=("in.jsonl", lines(2)), purpose="batch")

    def made(**options: object) -> str:
        told = {"endpoint": "/v1/completions", "completion_window": "24h"} | options
        return client.batches.create(input_file_id=file.id, **told).id

    first = made()
    wait_for(client, first)
    assert made() == first
    assert made(metadata={"run": "2"}) != first
    assert made(completion_window="4h") != first


def test_250_files_are_paged_through_each_once_also_while_they_are_deleted(service: EchoService) -> None:
    client = service.start()
    made = [client.files.create(file=(f"{i}", b"{}"), purpose="batch").id for i in range(250)]
    assert [file.id for file in client.files.list(limit=100)] == made[::-1]
    assert [file.id for file in client.files.list(limit=100, order="asc")] == made
    gone = []
    for file in client.files.list(limit=100, order="asc"):
        assert client.files.delete(file.id).deleted
        gone.append(file.id)
    assert gone == made
    assert list(client.files.list()) == []
    assert list((service.store / "files").iterdir()) == []
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made[0])


def test_an_input_that_is_deleted_is_still_run(service: EchoService) -> None:
    client = service.start("--echo-seconds", "0.3", "--pool", "5")
    made = create(client, lines(30))
    client.files.delete(made.input_file_id)
    assert_whole(client, wait_for(client, made.id), [f"r{i}" for i in range(30)])


def test_each_key_sees_its_own_only(service: EchoService, tmp_path: Path) -> None:
    hashes = [hashlib.sha256(key.encode()).hexdigest() for key in ("one", "two")]
    keys = tmp_path / "keys"
    keys.write_text(f"# who may call\n{hashes[0]} first\n{hashes[1]}  -\n")
    service.start("--api-keys", str(keys))
    with pytest.raises(openai.AuthenticationError):
        service.client("three").files.list()
    assert httpx.get(f"{service.url}/batches").status_code == 401
    one, two = service.client("one"), service.client("two")
    batch = wait_for(one, create(one, lines(1)).id)
    for wrong in (
        lambda: two.batches.retrieve(batch.id),
        lambda: two.batches.cancel(batch.id),
        lambda: two.files.content(batch.output_file_id or ""),
        lambda: two.files.delete(batch.input_file_id),
        lambda: two.batches.list(after=batch.id),
        lambda: two.batches.create(
            input_file_id=batch.input_file_id, endpoint="/v1/completions", completion_window="24h"
        ),
    ):
        with pytest.raises(openai.NotFoundError):
            wrong()
    assert list(two.files.list()) == list(two.batches.list()) == []
    assert one.files.retrieve(batch.input_file_id).id == batch.input_file_id
    assert "one" not in (service.store / "service.sqlite").read_bytes().decode("latin-1").split()


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"endpoint": "/v1/nowhere"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after.seconds"),
    ],
)
def test_what_is_wrong_with_a_create_is_named(
    options: dict[str, object], param: str, service: EchoService
) -> None:
    client = service.start()
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, lines(1), **options)
    assert refused.value.param == param


def test_an_upload_that_is_too_large_or_broken_leaves_nothing(service: EchoService) -> None:
    client = service.start("--max-file-mb", "0.01")
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=("in.jsonl", b"x" * 10_001), purpose="batch")
    assert refused.value.status_code == 413
    client.files.create(file=("in.jsonl", b"x" * 10_000), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("in.jsonl", b"x"), purpose="vision")
    form = {"content-type": "multipart/form-data; boundary=b"}
    cut = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n{}'
    for body, headers in ((cut, form), (b"rubbish", form), (b"{}", {"content-type": "application/json"})):
        assert httpx.post(f"{service.url}/files", content=body, headers=headers).status_code == 400
    assert list((service.store / "uploads").iterdir()) == []
    assert len(list((service.store / "files").iterdir())) == 1


def test_a_line_that_kills_the_engine_harms_no_other_batch(service: EchoService) -> None:
    client = service.start("--echo-seconds", "0.2", "--pool", "30")
    good = create(client, lines(60, name="g"))
    deadly = create(client, lines(10) + request("deadly", "kill") + lines(10, name="s"))
    ended = wait_for(client, deadly.id)
    assert_whole(client, ended, [*(f"{name}{i}" for name in "rs" for i in range(10)), "deadly"])
    (record,) = records(client, ended.error_file_id)
    assert (record["custom_id"], record["error"]["code"]) == ("deadly", "engine_crashed")
    other = wait_for(client, good.id)
    assert (other.status, counts(other)) == ("completed", (60, 60, 0))
    assert service.process is not None
    assert service.process.poll() is None


def test_an_engine_that_does_not_start_ends_the_service(service: EchoService) -> None:
    said = subprocess.run(
        [*service.command(), "--echo-log", "/nowhere"], capture_output=True, text=True, timeout=SECONDS
    )
    assert said.returncode == 3
    assert "no log; the same command goes on" in said.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "pass --api-keys too"),
        (["--api-keys", "nowhere"], "cannot be read"),
        (["--port", "99999"], "cannot listen"),
        (["--max-requests", "0"], "must be at least 1"),
    ],
)
def test_bad_usage_is_told_in_a_line(flags: list[str], message: str, service: EchoService) -> None:
    said = subprocess.run(service.command(*flags), capture_output=True, text=True, timeout=SECONDS)
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert message in said.stderr


def test_two_services_cannot_have_one_store(service: EchoService) -> None:
    service.start()
    said = subprocess.run(service.command(), capture_output=True, text=True, timeout=SECONDS)
    assert said.returncode == 2
    assert "is served by process" in said.stderr


def test_files_that_expire_are_gone(service: EchoService) -> None:
    client = service.start()
    kept = client.files.create(
        file=("in.jsonl", lines(1)),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert kept.expires_at == kept.created_at + 3600
    made = create(client, lines(1), output_expires_after={"anchor": "created_at", "seconds": 7200})
    batch = wait_for(client, made.id)
    output = client.files.retrieve(batch.output_file_id or "")
    assert output.expires_at == output.created_at + 7200
    assert time.time() < kept.expires_at


def test_a_later_batch_with_a_nearer_deadline_is_done_first(service: EchoService) -> None:
    client = service.start("--echo-seconds", "0.05", "--pool", "4")
    long = create(client, lines(400, name="long"))
    wait_until(client, long.id, lambda batch: counts(batch)[1] > 5)
    urgent = wait_for(client, create(client, lines(40, name="urgent"), completion_window="30s").id)
    assert urgent.status == "completed"
    assert client.batches.retrieve(long.id).status == "in_progress"
    assert wait_for(client, long.id).status == "completed"


def test_a_priority_that_is_none_is_refused(service: EchoService) -> None:
    client = service.start()
    for priority in ("soon", "0", "101", "-1", ""):
        with pytest.raises(openai.BadRequestError, match="metadata.priority: must be low, normal, high or"):
            create(client, lines(1), metadata={"priority": priority})

"""What clients of OpenAI's Batch API rely on, line by line, with the official client.

Beside this, `test_service` has: waiting for a file to be processed, `usage`, all requests failing, what is
kept when a batch is cancelled or expires, paging through 250 files that are deleted meanwhile; `test_content`
more codes of bad content; `test_restart` one record per line, whatever kills the service.

test/versions/openai.sh runs this file with other clients: it imports nothing of the service that needs one.
"""

import asyncio
import itertools
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web
from echo_jobs import SECONDS, request
from lossy_proxy import LossyProxy
from openai import OpenAI
from openai._constants import DEFAULT_MAX_RETRIES, DEFAULT_TIMEOUT
from services import (
    LAST,
    EchoService,
    assert_whole,
    counts,
    create,
    lines,
    records,
    wait_for,
    wait_until,
    write_keys,
)
from web import WebServer, error, serving

from sglang.batch.run.stops import STOP_SECONDS
from sglang.batch.serve.live import CANCEL_SECONDS
from sglang.batch.serve.store import REPEAT_SECONDS

CHAINS = {
    "completed": ("validating", "in_progress", "finalizing", "completed"),
    "failed": ("validating", "failed"),
    "expired": ("validating", "in_progress", "expired"),
    "cancelled": ("validating", "in_progress", "cancelling", "cancelled"),
}
"""The states before each last one."""

TIMES = sorted({f"{state}_at" for chain in CHAINS.values() for state in chain} - {"validating_at"})

KEYS = [f"key{i}" for i in range(40)]

SHORTEST, LONGEST = 3600, 2_592_000


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoService]:
    """A service for all tests that need no flags of their own."""
    folder = tmp_path_factory.mktemp("contract")
    service = EchoService(folder)
    service.start("--api-keys", str(write_keys(folder, *KEYS)))
    yield service
    service.kill()


@pytest.fixture(scope="module")
def keys() -> Iterator[str]:
    return iter(KEYS)


@pytest.fixture
def client(shared: EchoService, keys: Iterator[str]) -> OpenAI:
    """A client with a key of its own, so that it sees nothing of other tests."""
    return shared.client(next(keys))


def upload(client: OpenAI, content: bytes = b"{}", **options: Any) -> Any:
    return client.files.create(file=("in.jsonl", content), purpose="batch", **options)


# Files.


def test_a_file_has_the_fields_of_the_api(client: OpenAI) -> None:
    before = int(time.time())
    file = upload(client, lines(2)).to_dict()
    assert file.pop("id").startswith("file-")
    assert before <= file.pop("created_at") <= time.time()
    assert file.pop("status_details", None) is None
    assert file == {
        "object": "file",
        "bytes": len(lines(2)),
        "filename": "in.jsonl",
        "purpose": "batch",
        "status": "processed",
        "expires_at": None,
    }
    batch = wait_for(client, create(client, lines(2)).id)
    output = client.files.retrieve(batch.output_file_id or "")
    assert (output.purpose, output.status) == ("batch_output", "processed")
    assert output.bytes == len(client.files.content(output.id).read())


def test_content_is_sent_to_who_accepts_application_binary(client: OpenAI) -> None:
    reply = client.files.with_raw_response.content(upload(client, lines(3)).id)
    assert reply.http_request.headers["accept"] == "application/binary"
    assert (reply.status_code, reply.content) == (200, lines(3))


def test_a_deleted_file_is_gone(client: OpenAI) -> None:
    id = upload(client).id
    assert client.files.delete(id).to_dict() == {"id": id, "object": "file", "deleted": True}
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            gone(id)


@pytest.mark.parametrize("seconds", [SHORTEST, LONGEST])
def test_files_may_expire_from_an_hour_to_thirty_days_after_their_creation(
    seconds: int, client: OpenAI
) -> None:
    after: Any = {"anchor": "created_at", "seconds": seconds}
    file = upload(client, lines(1), expires_after=after)
    assert file.expires_at == file.created_at + seconds
    batch = wait_for(client, create(client, lines(1) + request("x", "refuse"), output_expires_after=after).id)
    for id in (batch.output_file_id, batch.error_file_id):
        made = client.files.retrieve(id or "")
        assert made.expires_at == made.created_at + seconds


@pytest.mark.parametrize(
    "after",
    [
        {"anchor": "created_at", "seconds": SHORTEST - 1},
        {"anchor": "created_at", "seconds": LONGEST + 1},
        {"anchor": "last_active_at", "seconds": SHORTEST},
        {"seconds": SHORTEST},
        {"anchor": "created_at"},
    ],
)
def test_other_expiries_are_refused(after: Any, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="expires_after"):
        upload(client, expires_after=after)
    with pytest.raises(openai.BadRequestError, match="output_expires_after"):
        create(client, lines(1), output_expires_after=after)
    assert len(list(client.files.list())) == 1, "the one of the batch"


def test_lists_of_files_have_limit_order_purpose_and_after(client: OpenAI) -> None:
    batch = wait_for(client, create(client, lines(1)).id)
    ids = [batch.input_file_id, batch.output_file_id, upload(client).id, upload(client).id]

    def listed(**options: Any) -> list[str]:
        return [file.id for file in client.files.list(**options)]

    assert listed(order="asc") == ids
    assert listed() == listed(order="desc") == ids[::-1]
    assert listed(purpose="batch_output") == [ids[1]]
    assert listed(purpose="batch", order="asc") == [ids[0], *ids[2:]]
    assert listed(purpose="vision") == []
    assert listed(order="asc", after=ids[1]) == ids[2:]
    assert listed(after=ids[2]) == ids[1::-1]
    for limit in (1, 10_000):
        assert listed(order="asc", limit=limit) == ids, "page by page"
    for limit in (0, -1, 10_001):
        with pytest.raises(openai.BadRequestError, match="limit"):
            client.files.list(limit=limit)
    with pytest.raises(openai.BadRequestError, match="order"):
        client.files.list(order="up")  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError):
        client.files.list(after="file-unknown")


def test_a_page_says_whether_there_are_more_and_the_next_begins_behind_its_last(client: OpenAI) -> None:
    made = [upload(client).id for _ in range(4)]
    page = client.files.list(limit=2, order="asc")
    assert ([file.id for file in page.data], page.has_more) == (made[:2], True)
    info = page.next_page_info()
    assert info is not None
    assert dict(info.params)["after"] == made[1]
    page = page.get_next_page()
    assert ([file.id for file in page.data], page.has_more) == (made[2:], False)


def test_batches_are_paged_through_the_newest_first(client: OpenAI) -> None:
    made = [create(client, lines(1)).id for _ in range(3)]
    page = client.batches.list(limit=2)
    assert ([batch.id for batch in page.data], page.has_more) == (made[:0:-1], True)
    assert [batch.id for batch in client.batches.list(limit=1)] == made[::-1]
    assert [batch.id for batch in client.batches.list(after=made[1])] == made[:1]


# Create.


def test_create_answers_with_a_batch_of_which_nothing_is_done(client: OpenAI) -> None:
    batch = create(client, lines(1)).to_dict()
    assert re.fullmatch("batch_[0-9a-f]{32}", batch["id"])
    assert (batch["object"], batch["status"]) == ("batch", "validating")
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert batch["expires_at"] == batch["created_at"] + 86_400
    empty = [*TIMES, "errors", "metadata", "output_file_id", "error_file_id"]
    assert {name: batch[name] for name in empty} == dict.fromkeys(empty)


def test_metadata_has_16_pairs_of_64_and_512_characters_at_most(client: OpenAI) -> None:
    most = {f"{i:02}".ljust(64, "ä"): "ö" * 512 for i in range(16)}
    batch = create(client, lines(1), metadata=most)
    assert batch.metadata == most
    assert client.batches.retrieve(batch.id).metadata == most
    for wrong in (most | {"one": "more"}, {"k" * 65: ""}, {"k": "v" * 513}, {"k": 1}):
        with pytest.raises(openai.BadRequestError) as refused:
            create(client, lines(1), metadata=wrong)
        assert (refused.value.param or "").startswith("metadata")
    assert len(list(client.batches.list())) == 1


@pytest.mark.parametrize("status", [0, 408, 409, 429, 500, 503])
def test_a_create_that_the_client_repeats_by_itself_is_one_batch(
    status: int, shared: EchoService, keys: Iterator[str]
) -> None:
    key = next(keys)
    with LossyProxy(shared.url, status) as proxy:
        url = f"http://127.0.0.1:{proxy.server_port}/v1"
        batch = create(OpenAI(base_url=url, api_key=key, timeout=SECONDS), lines(2))
    assert proxy.creates == [batch.id] * 2
    assert [made.id for made in shared.client(key).batches.list()] == [batch.id]


def test_a_create_may_be_repeated_as_long_as_the_client_does() -> None:
    assert not isinstance(DEFAULT_TIMEOUT, float)
    assert DEFAULT_TIMEOUT.read is not None
    assert DEFAULT_MAX_RETRIES * DEFAULT_TIMEOUT.read < REPEAT_SECONDS


def test_creates_at_the_same_time_and_after_a_kill_are_one_batch(service: EchoService) -> None:
    client = service.start()
    id = upload(client, lines(2)).id

    def made(_: object = None) -> str:
        return (
            service.client()
            .batches.create(input_file_id=id, endpoint="/v1/completions", completion_window="24h")
            .id
        )

    with ThreadPoolExecutor(8) as pool:
        (first,) = set(pool.map(made, range(8)))
    service.kill()
    service.start()
    assert made() == first


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{nonsense\n", ("invalid_json_line", 1, None)),
        (request("a") + request("a"), ("duplicate_custom_id", 2, "custom_id")),
        (request("a").replace(b"completions", b"embeddings"), ("url_mismatch", 1, "url")),
        (request("a", model="m") + request("b", model="n"), ("model_mismatch", 2, "body.model")),
        (b"", ("empty_file", None, None)),
        (lines(50_001), ("too_many_tasks", None, None)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_bad_content_is_no_bad_request_but_a_failed_batch(
    content: bytes, expected: tuple[Any, ...], client: OpenAI
) -> None:
    batch = wait_for(client, create(client, content).id)
    assert (batch.status, batch.errors is None) == ("failed", False)
    assert (batch.output_file_id, batch.error_file_id, counts(batch)) == (None, None, (0, 0, 0))
    assert batch.errors is not None
    assert batch.errors.object == "list"
    (found,) = batch.errors.data or ()
    assert (found.code, found.line, found.param) == expected
    assert found.message


# States.


def follow(client: OpenAI, ids: dict[str, str], seen: dict[str, list[Any]], over: Callable[[], bool]) -> None:
    """Poll batches and note each change."""
    deadline = time.monotonic() + SECONDS
    while not over():
        for name, id in ids.items():
            batch = client.batches.retrieve(id)
            if not seen[name] or batch != seen[name][-1]:
                seen[name].append(batch)
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)


def test_states_follow_one_another_and_each_time_is_set_once_whatever_happens(service: EchoService) -> None:
    client = service.start("--echo-seconds", "0.3", "--pool", "6")
    ids = {
        "failed": create(client, b"{nonsense\n").id,
        "expired": create(client, lines(400, name="e"), completion_window="4s").id,
        "cancelled": create(client, lines(400, name="c")).id,
        "completed": create(client, lines(60) + request("bad", "refuse")).id,
    }
    seen: dict[str, list[Any]] = {name: [] for name in ids}

    def answered() -> bool:
        return all(seen[name] and counts(seen[name][-1])[1] for name in ids if name != "failed")

    follow(client, ids, seen, answered)
    time.sleep(1.1)  # times are whole seconds: what is set anew would differ
    service.kill()
    client = service.start("--echo-seconds", "0.3", "--pool", "6")
    client.batches.cancel(ids["cancelled"])
    follow(client, ids, seen, lambda: all(batches[-1].status in LAST for batches in seen.values()))

    for name, batches in seen.items():
        chain = CHAINS[name]
        states = [state for state, _ in itertools.groupby(batch.status for batch in batches)]
        assert [state for state in chain if state in states] == states
        last = batches[-1]
        assert last.status == name
        for before, after in itertools.pairwise(batches):
            assert all(one <= other for one, other in zip(counts(before), counts(after), strict=True))
            for time_set in TIMES:
                assert getattr(before, time_set) in (None, getattr(after, time_set)), (name, time_set)
        times = [getattr(last, f"{state}_at") for state in chain[1:]]
        assert None not in times
        assert [last.created_at, *times] == sorted([last.created_at, *times])
        assert {one for one in TIMES if getattr(last, one)} == {f"{state}_at" for state in chain[1:]}
        total, completed, failed = counts(last)
        assert total == completed + failed
    for name, count in (("expired", 400), ("cancelled", 400)):
        assert_whole(client, seen[name][-1], [f"{name[0]}{i}" for i in range(count)])
        for record in records(client, seen[name][-1].error_file_id):
            assert record["response"] is None
            assert record["error"]["code"] == f"batch_{name}"
            assert record["error"]["message"]


@pytest.mark.parametrize("moment", ["at once", "as soon as it runs"])
def test_cancelled_early_a_batch_has_a_record_for_each_line_too(moment: str, client: OpenAI) -> None:
    made = create(client, lines(3000))
    if moment != "at once":
        wait_for(client, made.id, ("in_progress", *LAST))
    client.batches.cancel(made.id)
    batch = wait_for(client, made.id)
    assert batch.status == "cancelled"
    assert_whole(client, batch, [f"r{i}" for i in range(3000)])


def test_cancelling_takes_ten_minutes_at_most() -> None:
    assert CANCEL_SECONDS + STOP_SECONDS <= 600


def test_lines_that_never_end_do_not_keep_a_batch_cancelling(service: EchoService) -> None:
    client = service.start("--echo-cancel-seconds", "0.5", "--pool", "10")
    twins = lines(10, "wait", name="t", seed=1)
    made = create(client, lines(5) + lines(10, "wait", name="w") + twins)
    wait_until(client, made.id, lambda batch: counts(batch)[1] == 5)
    assert client.batches.cancel(made.id).status == "cancelling"
    batch = wait_for(client, made.id)
    assert (batch.status, counts(batch)) == ("cancelled", (25, 5, 20))
    assert_whole(
        client, batch, [*(f"r{i}" for i in range(5)), *(f"{name}{i}" for name in "wt" for i in range(10))]
    )
    assert {record["error"]["code"] for record in records(client, batch.error_file_id)} == {"batch_cancelled"}


def test_lines_that_wait_for_the_engine_do_not_keep_a_batch_cancelling(service: EchoService) -> None:
    client = service.start("--pool", "1", "--echo-seconds", "1000")
    other = create(client, lines(1, name="other"))
    wait_for(client, other.id, ("in_progress",))
    made = create(client, lines(200))
    wait_for(client, made.id, ("in_progress",))
    client.batches.cancel(made.id)
    batch = wait_for(client, made.id)  # long before what requests get to end
    assert (batch.status, counts(batch)) == ("cancelled", (200, 0, 200))


# Lines.


async def _troubles(server: WebServer, body: dict[str, Any]) -> web.StreamResponse | None:
    prompt = body["prompt"]
    if prompt == "slow":
        await asyncio.sleep(60)
    return None if not prompt.isdigit() else error(int(prompt), f"is {prompt}")


def test_statuses_are_responses_and_what_is_no_matter_of_http_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = WebServer(_troubles)
    flags = ("--endpoint-retries", "0", "--endpoint-timeout", "1")
    statuses = ("400", "404", "429", "500", "503")
    with serving(server):
        service = EchoService(tmp_path)
        try:
            client = service.start("--endpoint", server.url, *flags)
            content = request("fine") + b"".join(request(status) for status in (*statuses, "slow"))
            batch = wait_for(client, create(client, content).id)
            assert_whole(client, batch, ["fine", *statuses, "slow"])
            failed = {record["custom_id"]: record for record in records(client, batch.error_file_id)}
        finally:
            service.kill()
    for status in statuses:
        record = failed.pop(status)
        assert record["error"] is None
        assert record["response"]["status_code"] == int(status)
        assert record["response"]["request_id"]
        assert record["response"]["body"]["error"]["message"] == f"is {status}"
    (record,) = failed.values()
    assert record["response"] is None
    assert (record["error"]["code"], bool(record["error"]["message"])) == ("request_timeout", True)

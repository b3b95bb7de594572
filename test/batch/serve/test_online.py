"""Requests of online users go through at once, beside whatever batches run, and nothing of them is kept."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from aiohttp import web
from echo_jobs import SECONDS
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families
from services import EchoService, assert_whole, counts, create, lines, wait_for, wait_until, write_keys
from web import WebServer, serving

from sglang.batch.media import MediaPolicy
from sglang.batch.serve import bodies
from sglang.batch.serve.online import Online

SLOW = ("--echo-seconds", "3", "--pool", "2")


def outcomes(service: EchoService) -> dict[str, float]:
    text = httpx.get(service.url.removesuffix("/v1") + "/metrics").text
    return {
        next(iter(sample.labels.values()), sample.name): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("sglang_batch_online")
    }


def up(service: EchoService, *flags: str) -> OpenAI:
    """Start it and wait for its engine, which refuses online requests before."""
    client = service.start(*flags)
    wait_up(service)
    return client


def wait_up(service: EchoService) -> None:
    deadline = time.monotonic() + SECONDS
    while httpx.get(service.url.removesuffix("/v1") + "/health").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def complete(client: OpenAI, prompt: str = "hello you", **options: Any) -> Any:
    return client.completions.create(model="echo", prompt=prompt, **options)


def test_whole_and_in_parts_a_request_is_answered_with_its_tokens(service: EchoService) -> None:
    client = up(service)
    whole = complete(client)
    assert (whole.choices[0].text, whole.usage.prompt_tokens) == ("echo hello you", 10)
    parts = list(complete(client, stream=True))
    assert [part.choices[0].text for part in parts] == ["echo", "hello", "you"], "without the tokens"
    *parts, last = complete(client, stream=True, stream_options={"include_usage": True})
    assert [part.choices[0].text for part in parts] == ["echo", "hello", "you"]
    assert (last.choices, last.usage.completion_tokens) == ([], 2)
    chat = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "x"}])
    assert chat.usage is not None
    found = outcomes(service)
    assert (found["answered"], found["prompt"], found["completion"]) == (4, 40, 8)


@pytest.mark.parametrize(
    ("sent", "outcome"),
    [
        (b'data: {"choices": [{}]}\n\ndata: [DONE]\n\n', "answered"),
        (b'data: {"choices": [{}]}\n\n', "given_up"),
    ],
)
def test_who_hangs_up_with_the_whole_stream_has_an_answer(sent: bytes, outcome: str) -> None:
    """The engine has sent it all, or not, and has yet to say that the request has ended."""

    class Engine:
        async def pass_on(self, request: Any, part: Any) -> Any:
            part(sent)
            await asyncio.Event().wait()

    async def hang_up() -> Online:
        shared: Any = SimpleNamespace(at_once=lambda id, run: run())
        online = Online(Engine(), shared, MediaPolicy(), 1)
        parts: list[bytes] = []
        body = {"prompt": "x", "stream": True}
        task = asyncio.ensure_future(online.run("me", "/v1/completions", body, parts.append))
        while not parts:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        return online

    ended = asyncio.run(asyncio.wait_for(hang_up(), SECONDS)).outcomes
    assert {name: count for name, count in ended.items() if count} == {outcome: 1}


def test_it_waits_for_none_of_the_batches_requests(service: EchoService) -> None:
    client = up(service, *SLOW)
    batch = create(client, lines(200))
    wait_until(client, batch.id, lambda batch: counts(batch)[0] == 200)
    for _ in range(3):
        complete(client)
    assert counts(client.batches.retrieve(batch.id))[1] < 100
    client.batches.cancel(batch.id)


def test_refusals_are_errors_of_openais_kind(service: EchoService) -> None:
    client = up(service)
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="refused") as refused:
            complete(client, "refuse it", stream=stream)
        assert refused.value.code == "BadRequestError"
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/embeddings", body={"input": "x", "stream": True}, cast_to=object)
    assert refused.value.param == "stream"
    for body in (b"{", b"[]", b"\xff", b"[" * 100_000):
        reply = httpx.post(f"{service.url}/completions", content=body)
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
    with pytest.raises(openai.InternalServerError, match="cannot run this") as raised:
        complete(client, "raise it")
    assert raised.value.response.headers["x-should-retry"] == "false"
    media = {"model": "m", "messages": [{"content": [{"image_url": {"url": "file:///etc/passwd"}}]}]}
    with pytest.raises(openai.BadRequestError, match="only data URLs"):
        client.post("/chat/completions", body=media, cast_to=object)


def test_keys_and_their_tokens_of_a_day_count(service: EchoService, tmp_path: Path) -> None:
    keys = ("--api-keys", str(write_keys(tmp_path, "mine", "yours")))
    up(service, *keys, "--max-daily-tokens", "30")
    with pytest.raises(openai.AuthenticationError):
        complete(service.client("wrong"))
    mine = service.client("mine")
    complete(mine)
    assert len(list(complete(mine, stream=True))) == 3
    complete(mine)
    for refused in (lambda: complete(mine), lambda: create(mine, lines(1))):
        with pytest.raises(openai.RateLimitError, match="36 of the 30 tokens") as error:
            refused()
        assert 0 < int(error.value.response.headers["retry-after"]) <= 86_400
    complete(service.client("yours"))


@contextmanager
def in_flight(client: OpenAI, service: EchoService, prompt: str) -> Iterator[Any]:
    """A stream of which some has come."""
    with client.completions.with_streaming_response.create(model="m", prompt=prompt, stream=True) as reply:
        events = reply.iter_lines()
        next(events)
        yield events


def test_one_too_many_is_told_when_to_come_again(service: EchoService) -> None:
    client = up(service, "--echo-seconds", "0.2", "--max-online", "1")
    with in_flight(client, service, "word " * 30):
        assert outcomes(service)["sglang_batch_online_in_flight"] == 1
        with pytest.raises(openai.RateLimitError) as refused:
            complete(client)
    assert refused.value.response.headers["retry-after"] == "1"
    assert list(create_and_wait(client)) == ["completed"], "batches have their own room"


def create_and_wait(client: OpenAI) -> Iterator[str]:
    yield wait_for(client, create(client, lines(3)).id).status


def test_whoever_goes_away_is_not_answered_to_the_end(service: EchoService) -> None:
    client = up(service, "--echo-seconds", "0.5")
    with in_flight(client, service, "word " * 1000):
        pass
    body = {"prompt": "x " * 1000}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{service.url}/completions", json=body, timeout=0.05)
    deadline = time.monotonic() + SECONDS
    while (found := outcomes(service)).get("given_up") != 2:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    assert found["sglang_batch_online_in_flight"] == 0
    assert 1 <= found["completion"] < 1000


def test_a_request_that_kills_the_engine_harms_no_batch_and_is_not_sent_again(service: EchoService) -> None:
    client = up(service, "--echo-seconds", "0.1", "--pool", "10")
    batch = create(client, lines(60))
    wait_until(client, batch.id, lambda batch: counts(batch)[1] >= 5)
    with pytest.raises(openai.InternalServerError) as died:
        complete(client.with_options(max_retries=5), "kill it")
    assert died.value.response.headers["x-should-retry"] == "false"
    ended = wait_for(client, batch.id)
    assert (ended.status, counts(ended)) == ("completed", (60, 60, 0))
    assert_whole(client, ended, [f"r{i}" for i in range(60)])
    assert service.said.read_text().count("starting it again") == 1
    complete(client)


def test_nothing_of_it_is_kept_or_logged(service: EchoService) -> None:
    client = up(service)
    for stream in (False, True):
        answer = complete(client, "tell nobody", stream=stream)
        assert not stream or list(answer)
    assert service.terminate() == 0
    written = [path for path in service.store.rglob("*") if path.is_file()]
    assert written
    for path in [*written, service.said]:
        assert b"tell nobody" not in path.read_bytes(), path


def test_a_body_has_a_bound(service: EchoService) -> None:
    client = up(service)
    body = b'{"prompt": "' + b"x" * bodies.MOST + b'"}'
    for path in ("completions", "batches"):
        reply = httpx.post(f"{service.url}/{path}", content=body, timeout=SECONDS)
        assert (reply.status_code, reply.json()["error"]["type"]) == (413, "invalid_request_error")
    complete(client)


def test_without_room_for_online_requests_there_are_none(service: EchoService) -> None:
    client = up(service, "--max-online", "0")
    with pytest.raises(openai.NotFoundError, match="passes no online requests"):
        complete(client)


async def _streamed(server: WebServer, body: dict[str, Any]) -> web.StreamResponse | None:
    if body["prompt"] == "overload":
        return web.json_response({"error": {"message": "too many"}}, status=429)
    if not body.get("stream"):
        return None
    reply = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await reply.prepare(server.request)
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    for event in ({"choices": [{"text": "a"}]}, {"choices": [], "usage": usage}):
        text = f"data: {json.dumps(event)}\r\n\r\n".encode()
        for at in range(0, len(text), 5):
            await reply.write(text[at : at + 5])
            await asyncio.sleep(0)
    if body["prompt"] == "cut":
        assert server.request.transport is not None
        server.request.transport.close()
        return reply
    await reply.write(b"data: [DONE]\r\n\r\n")
    return reply


def test_a_running_server_gets_it_with_the_priority_that_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = WebServer(_streamed, policy="blend", priorities=True)
    with serving(server):
        service = EchoService(tmp_path)
        try:
            client = up(service, "--endpoint", server.url)
            assert complete(client, "one").choices[0].text == "one"
            assert server.bodies[-1]["priority"] > 10**9
            assert [part.choices[0].text for part in complete(client, stream=True)] == ["a"]
            assert outcomes(service)["completion"] == 2 + 3
            with pytest.raises(openai.APIError, match="cut off|connection|payload"):
                list(complete(client, "cut", stream=True))
            with pytest.raises(openai.RateLimitError, match="too many"):
                complete(client, "overload")
            wait_for(client, create(client, lines(1)).id)
            assert "priority" not in server.bodies[-1]
            server.stop()
            with pytest.raises(openai.InternalServerError, match="(?i)connect|reached") as gone:
                complete(client)
            assert gone.value.status_code == 502
        finally:
            service.kill()

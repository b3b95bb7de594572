"""Requests to servers on the loopback: every one is answered once, whatever the servers do."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import uvloop
from aiohttp import web
from stand_ins import FakeCommitter, line, work
from web import Drop, WebServer, error, serving

from sglang.batch.run.engine.protocol import EngineDied
from sglang.batch.run.job import BatchJob
from sglang.batch.run.remote import client, dispatcher
from sglang.batch.run.remote.arguments import Endpoint, RemoteArguments
from sglang.batch.run.remote.engine import RemoteEngine, ServersUnavailable
from sglang.batch.run.tally import Tally
from sglang.batch.usage import BadUsage


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def any_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """uvloop's clock and timers count milliseconds; importing SGLang's server switches it on."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(request.param())
    yield
    asyncio.set_event_loop_policy(before)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried again soon, and not through a proxy."""
    monkeypatch.setattr(dispatcher, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(dispatcher, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(dispatcher, "LONGEST_PROBE", 0.05)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


class Run:
    """What a run gave: records by custom_id, and what the user was told."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.tally = Tally()
        self.engine: RemoteEngine

    @property
    def by_id(self) -> dict[str, dict[str, Any]]:
        found = {record["custom_id"]: record for record in self.records}
        assert len(found) == len(self.records), "a custom_id has two records"
        return found

    @property
    def texts(self) -> dict[str, str]:
        return {key: one["response"]["body"]["choices"][0]["text"] for key, one in self.by_id.items()}


def arguments(*servers: WebServer, weights: tuple[int, ...] = (), **changes: Any) -> RemoteArguments:
    weights = weights or (1,) * len(servers)
    fields = {
        "endpoints": tuple(Endpoint(s.url, w) for s, w in zip(servers, weights, strict=True)),
        "concurrency": None,
        "retries": 10,
        "timeout": 60.0,
        "patience": 60.0,
        "headers": {},
        **changes,
    }
    return RemoteArguments(**fields)


def run(
    remote: RemoteArguments,
    lines: list[bytes],
    *,
    pool: int = 10_000,
    barrier: bool = True,
    begun: Callable[[RemoteEngine], None] = lambda engine: None,
) -> Run:
    result = Run()
    engine = result.engine = RemoteEngine(remote, pool=pool, say=result.said.append)
    job = BatchJob(
        engine,
        lambda on_commit: FakeCommitter(on_commit, lambda record: result.records.append(json.loads(record))),
        tally=result.tally,
        pool=pool,
        barrier=engine.barrier() if barrier else None,
    )
    try:
        begun(engine)
        engine.loop.run_until_complete(asyncio.wait_for(job.run(work(lines)), 120))
    finally:
        engine.shutdown()
    return result


def lines(count: int) -> list[bytes]:
    return [line(f"id-{i}", body={"prompt": f"{i:04d}", "max_tokens": 4}) for i in range(count)]


def answers(count: int) -> dict[str, str]:
    return {f"id-{i}": f"{i:04d}" for i in range(count)}


def first_times(times: int, reply: Callable[[], web.Response]) -> Callable[..., Any]:
    """Reply so to the first requests; `reply` may raise."""
    count = 0

    async def respond(server: WebServer, body: dict[str, Any]) -> web.Response | None:
        nonlocal count
        count += 1
        return reply() if count <= times else None

    return respond


def drop() -> web.Response:
    raise Drop


def test_every_line_gets_its_own_answer() -> None:
    server = WebServer(None)
    with serving(server):
        result = run(arguments(server), lines(300))
    assert result.texts == answers(300)
    assert result.tally.completion_tokens == 600
    assert result.tally.cached_tokens == 1200
    assert len(server.seen) == 300


def test_a_model_is_filled_in_where_a_body_names_none() -> None:
    server = WebServer(None, model="theirs")
    items = [line("a", body={"prompt": "a"}), line("b", body={"prompt": "b", "model": "mine", "rid": "5"})]
    with serving(server):
        run(arguments(server), items)
        run(arguments(server, model="ours"), items)
    models = Counter((body["prompt"], body["model"]) for body in server.bodies)
    assert models == {("a", "theirs"): 1, ("a", "ours"): 1, ("b", "mine"): 2}
    assert not any("rid" in body for body in server.bodies)


def test_headers_are_sent_and_never_shown() -> None:
    server = WebServer(None)
    with serving(server):
        remote = arguments(server, headers={"Authorization": "Bearer secret"})
        result = run(remote, lines(1))
    assert server.headers["Authorization"] == "Bearer secret"
    assert "secret" not in repr(remote) + repr(result.records) + repr(result.said)


@pytest.mark.parametrize(
    "reply",
    [
        lambda: error(429, **{"Retry-After": "0"}),
        lambda: error(503),
        lambda: error(500),
        lambda: error(502),
        lambda: error(504),
        lambda: web.Response(status=503, text="<html>", content_type="text/html"),
        lambda: web.Response(status=200, text="not JSON"),
        drop,
    ],
    ids=["429", "503", "500", "502", "504", "html", "nonsense", "dropped"],
)
@pytest.mark.usefixtures("any_loop")
def test_what_passes_is_tried_again(reply: Callable[[], web.Response]) -> None:
    server = WebServer(first_times(40, reply))
    with serving(server):
        result = run(arguments(server), lines(100))
    assert result.texts == answers(100)
    assert len(server.seen) == 140


@pytest.mark.parametrize("length", [True, False], ids=["of-known-length", "chunked"])
def test_an_answer_that_is_cut_in_the_middle_is_tried_again(length: bool) -> None:
    async def respond(server: WebServer, body: dict[str, Any]) -> web.StreamResponse | None:
        if server.seen.count(body["prompt"]) > 1:
            return None
        whole = server.echo(body).body
        assert isinstance(whole, bytes)
        response = web.StreamResponse()
        response.content_length = len(whole) if length else None
        await response.prepare(server.request)
        await response.write(whole[:-10])
        raise Drop

    server = WebServer(respond)
    with serving(server):
        result = run(arguments(server), lines(10))
    assert result.texts == answers(10)
    assert len(server.seen) == 20


def test_refusals_are_records_with_the_servers_words() -> None:
    async def respond(server: WebServer, body: dict[str, Any]) -> web.Response | None:
        if body["prompt"] == "0000":
            return error(400, "too long")
        if body["prompt"] == "0001":
            sglangs = {"object": "error", "message": "no", "type": "BadRequestError", "code": 400}
            return web.json_response(sglangs, status=400)
        if body["prompt"] == "0002":
            return web.Response(status=404, text="<html>nowhere</html>")
        return error(500, "broken") if body["prompt"] == "0003" else None

    server = WebServer(respond)
    with serving(server):
        result = run(arguments(server, retries=2), lines(5))
    responses = {key: record["response"] for key, record in result.by_id.items()}
    assert [responses[f"id-{i}"]["status_code"] for i in range(5)] == [400, 400, 404, 500, 200]
    errors = [responses[f"id-{i}"]["body"]["error"] for i in range(4)]
    assert [one["message"] for one in errors] == ["too long", "no", "<html>nowhere</html>", "broken"]
    assert [one["type"] for one in errors] == ["some_error", "BadRequestError", "http_404", "some_error"]
    assert Counter(server.seen) == {"0000": 1, "0001": 1, "0002": 1, "0003": 3, "0004": 1}
    assert result.tally.codes == {"some_error": 2, "BadRequestError": 1, "http_404": 1}


def test_a_connection_that_always_breaks_is_a_record_after_all_retries() -> None:
    server = WebServer(first_times(10**9, drop))
    with serving(server):
        result = run(arguments(server, retries=3), lines(2))
    assert {record["error"]["code"] for record in result.records} == {"connection_error"}
    assert Counter(server.seen) == {"0000": 4, "0001": 4}


def test_a_timeout_is_tried_again() -> None:
    async def respond(server: WebServer, body: dict[str, Any]) -> web.Response | None:
        if server.seen.count(body["prompt"]) == 1:
            await asyncio.sleep(60)
        return None

    server = WebServer(respond)
    with serving(server):
        result = run(arguments(server, timeout=0.3), lines(4))
    assert result.texts == answers(4)


def test_a_request_that_is_never_answered_in_time_has_the_code_of_openais_api() -> None:
    async def respond(server: WebServer, body: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    server = WebServer(respond)
    with serving(server):
        result = run(arguments(server, timeout=0.1, retries=1), lines(2))
    assert {record["error"]["code"] for record in result.records} == {"request_timeout"}
    assert [record["response"] for record in result.records] == [None, None]


def test_an_answer_on_several_lines_becomes_one_line() -> None:
    async def respond(server: WebServer, body: dict[str, Any]) -> web.Response:
        choices = [{"index": 0, "text": body["prompt"], "finish_reason": "stop"}]
        return web.Response(text=json.dumps({"choices": choices}, indent=2), content_type="application/json")

    server = WebServer(respond)
    with serving(server):
        result = run(arguments(server), lines(3))
    assert result.texts == answers(3)


def test_an_aborted_answer_is_tried_again() -> None:
    def aborted() -> web.Response:
        return web.json_response({"choices": [{"index": 0, "text": "", "finish_reason": "abort"}]})

    server = WebServer(first_times(2, aborted))
    with serving(server):
        result = run(arguments(server), lines(3))
    assert result.texts == answers(3)


def test_no_server_gets_more_than_it_may_have() -> None:
    async def respond(server: WebServer, body: dict[str, Any]) -> None:
        await asyncio.sleep(0.005)

    server = WebServer(respond)
    with serving(server):
        run(arguments(server, concurrency=5), lines(100))
    assert server.most_running == 5


def test_a_server_that_refuses_gets_fewer_at_a_time() -> None:
    async def respond(server: WebServer, body: dict[str, Any]) -> web.Response | None:
        if server.running > 6:
            return error(429, **{"Retry-After": "0"})
        await asyncio.sleep(0.002)
        return None

    server = WebServer(respond)
    with serving(server):
        result = run(arguments(server), lines(400))
    assert result.texts == answers(400)
    (one,) = result.engine._dispatcher.servers
    assert one.window.epoch >= 1
    assert one.window.limit < 16 + 16  # it began with 16, and steps are of 16
    refusals = len(server.seen) - 400
    assert refusals < 200


def test_a_server_that_is_asked_to_be_left_alone_is_left_alone() -> None:
    server = WebServer(first_times(1, lambda: error(429, **{"Retry-After": "1"})))
    with serving(server):
        result = run(arguments(server, concurrency=1), lines(3))
    times = result.engine._dispatcher.servers[0]
    assert result.texts == answers(3)
    assert times.window.epoch == 1
    assert result.tally.seconds >= 1.0


def test_a_pool_goes_to_blend_at_once() -> None:
    server = WebServer(None, policy="blend")
    server.gate.clear()

    def open_the_gate() -> None:
        deadline = time.monotonic() + 60
        while server.running < 300 and time.monotonic() < deadline:
            time.sleep(0.01)
        server.gate.set()

    opener = threading.Thread(target=open_the_gate)
    with serving(server):
        opener.start()
        result = run(arguments(server), lines(300))
        opener.join()
    assert server.most_running == 300
    assert result.texts == answers(300)


def documents(groups: int, each: int) -> list[bytes]:
    """Questions about documents; of every document one, then the next of each."""
    return [
        line(f"{g}-{q}", body={"prompt": f"document {g} " * 100 + f"question {q}", "max_tokens": 4})
        for q in range(each)
        for g in range(groups)
    ]


def test_others_get_the_plans_order() -> None:
    server = WebServer(None, policy="fcfs")
    with serving(server):
        run(arguments(server, concurrency=1), documents(6, 10))
    seen = [prompt.split()[1] for prompt in server.seen]
    changes = sum(one != other for one, other in pairwise(seen))
    # In the order of the file every request is about another document than the one before. The plan takes
    # from both of its ends, so two documents may alternate.
    assert changes < 40


def test_documents_stay_together_on_one_of_several_servers() -> None:
    servers = [WebServer(None), WebServer(None)]
    with serving(*servers):
        result = run(arguments(*servers), documents(40, 10))
    assert len(result.by_id) == 400
    where = [{prompt.split()[1] for prompt in server.seen} for server in servers]
    assert len(where[0] & where[1]) <= 6
    assert min(len(server.seen) for server in servers) >= 100


def test_weights_divide_the_work() -> None:
    """While nothing is answered nobody can help, so what they were given is what they have."""
    servers = [WebServer(None, policy="blend"), WebServer(None, policy="blend")]
    for server in servers:
        server.gate.clear()

    def open_the_gates() -> None:
        deadline = time.monotonic() + 60
        while sum(server.running for server in servers) < 400 and time.monotonic() < deadline:
            time.sleep(0.01)
        for server in servers:
            server.gate.set()

    opener = threading.Thread(target=open_the_gates)
    with serving(*servers):
        opener.start()
        result = run(arguments(*servers, weights=(3, 1)), lines(400))
        opener.join()
    assert result.texts == answers(400)
    assert len(servers[0].seen) == pytest.approx(300, abs=10)
    assert [round(server.work, 9) for server in result.engine._dispatcher.servers] == [0, 0]


def test_when_one_of_two_dies_the_other_answers_all() -> None:
    async def respond(server: WebServer, body: dict[str, Any]) -> None:
        if len(server.seen) == 50:
            threading.Thread(target=server.stop).start()
            await asyncio.sleep(60)
        await asyncio.sleep(0.001)

    dying, other = WebServer(respond), WebServer(None)
    with serving(dying, other):
        result = run(arguments(dying, other), lines(400))
    assert result.texts == answers(400)
    assert any("lost a server" in text for text in result.said)


def test_a_server_that_comes_back_goes_on() -> None:
    async def respond(server: WebServer, body: dict[str, Any]) -> None:
        if len(server.seen) == 20:

            def restart() -> None:
                server.stop()
                time.sleep(0.3)
                server.start()

            threading.Thread(target=restart).start()
            await asyncio.sleep(60)

    server = WebServer(respond)
    with serving(server):
        result = run(arguments(server), lines(60))
    assert result.texts == answers(60)
    assert any("is back" in text for text in result.said)


def test_a_run_ends_to_be_continued_when_no_server_is_left() -> None:
    async def respond(server: WebServer, body: dict[str, Any]) -> None:
        if len(server.seen) == 5:
            threading.Thread(target=server.stop).start()
            await asyncio.sleep(60)

    server = WebServer(respond)
    with serving(server), pytest.raises(ExceptionGroup) as raised:
        run(arguments(server, patience=0.5, concurrency=1), lines(10))
    assert raised.group_contains(EngineDied, match=r"0\.5 s")


def test_a_silent_server_is_asked_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests never end; when it does not even say what it is, they go elsewhere."""
    monkeypatch.setattr(dispatcher, "SILENT", 0.2)
    monkeypatch.setattr(client, "PROBE_SECONDS", 0.1)
    hung = False

    async def respond(server: WebServer, body: dict[str, Any]) -> None:
        nonlocal hung
        hung = True
        time.sleep(3)  # the whole server hangs

    silent, other = WebServer(respond, policy="blend"), WebServer(None)
    with serving(silent, other):
        result = run(arguments(silent, other), lines(40))
    assert hung
    assert result.texts == answers(40)


def test_a_server_with_another_model_does_not_take_the_place_of_one_that_died() -> None:
    async def respond(server: WebServer, body: dict[str, Any]) -> None:
        if len(server.seen) == 5:

            def replace() -> None:
                server.stop()
                time.sleep(0.3)  # models take their time to load
                server.model = "another"
                server.start()

            threading.Thread(target=replace).start()
            await asyncio.sleep(60)

    server = WebServer(respond)
    with serving(server), pytest.raises(ExceptionGroup) as raised:
        run(arguments(server, patience=1.0, concurrency=1), lines(10))
    assert raised.group_contains(EngineDied)


def test_a_server_that_is_not_there_yet_is_waited_for_while_another_works() -> None:
    later, other = WebServer(None), WebServer(None)
    with serving(later, other):
        later.stop()

        async def respond(server: WebServer, body: dict[str, Any]) -> None:
            if len(server.seen) == 10:
                threading.Thread(target=later.start).start()
            while len(server.seen) >= 10 and not later.seen:
                await asyncio.sleep(0.01)

        other.respond = respond
        result = run(arguments(later, other, concurrency=2), lines(200))
    assert result.texts == answers(200)
    assert later.answered


def test_without_any_server_nothing_begins() -> None:
    server = WebServer(None)
    with serving(server):
        pass
    with pytest.raises(ServersUnavailable):
        RemoteEngine(arguments(server), pool=10)


def test_servers_with_different_models_need_a_name() -> None:
    servers = [WebServer(None, model="one"), WebServer(None, model="two")]
    with serving(*servers):
        with pytest.raises(BadUsage, match="one, two"):
            RemoteEngine(arguments(*servers), pool=10)
        assert len(run(arguments(*servers, model="one"), lines(10)).records) == 10


def test_cancelled_requests_free_their_places() -> None:
    server = WebServer(None)
    server.gate.clear()
    with serving(server):
        engine = RemoteEngine(arguments(server, concurrency=4), pool=100)

        async def cancel() -> None:
            tasks = [asyncio.ensure_future(engine.answer(item.item, "x")) for item in work(lines(20))]
            while server.running < 4:
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            (one,) = engine._dispatcher.servers
            assert (one.outstanding, len(one.queue), round(one.work, 12)) == (0, 0, 0)
            server.gate.set()
            (item,) = work(lines(1))
            assert (await engine.answer(item.item, "x")).ok

        try:
            engine.loop.run_until_complete(asyncio.wait_for(cancel(), 60))
        finally:
            engine.shutdown()

"""What a request names: data URLs pass, files and hosts only out of the allowed set, all else is refused."""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sglang.batch.media import (
    MAX_REDIRECTS,
    LocalFile,
    MediaGate,
    MediaPolicy,
    MediaRefused,
    add_media_arguments,
    media_policy,
    references,
)
from sglang.batch.records import Answer, BatchRequest
from sglang.batch.usage import BadUsage

PIXEL = base64.b64encode(b"a picture").decode()
DATA_URL = f"data:image/png;base64,{PIXEL}"
SECRET, PUBLIC = b"what nobody may see", b"what everybody may see"


class Recorder:
    """An engine that keeps the bodies it is given."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        self.bodies.append(request.body)
        return Answer(200, b"{}")


def send(
    body: dict[str, Any],
    policy: MediaPolicy,
    serve: Callable[[httpx.Request], httpx.Response] | None = None,
) -> tuple[Answer, dict[str, Any] | None]:
    """The answer to a body, and what of it reached the engine; `serve` stands for the network."""
    engine = Recorder()
    gate = MediaGate(engine, policy)
    if serve is not None:
        gate._client = httpx.AsyncClient(transport=httpx.MockTransport(serve), trust_env=False)
    answer = asyncio.run(gate.answer(BatchRequest(1, "a", "/v1/chat/completions", body), "id"))
    return answer, engine.bodies[0] if engine.bodies else None


def reply_with(content: bytes) -> httpx.Response:
    async def pieces() -> AsyncIterator[bytes]:
        yield content[:10]
        yield content[10:]

    return httpx.Response(200, content=pieces())


def chat(url: Any, kind: str = "image_url") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": kind, kind: {"url": url}}]}]}


def url_of(body: dict[str, Any] | None) -> str:
    assert body is not None
    return str(body["messages"][0]["content"][0]["image_url"]["url"])


BODIES = {
    "messages.0.content.1.image_url.url": {
        "messages": [{"content": [{"type": "text", "text": "x"}, {"image_url": {"url": "@"}}]}]
    },
    "messages.0.content.0.image_url": {"messages": [{"content": [{"image_url": "@"}]}]},
    "messages.0.content.0.video_url.url": {"messages": [{"content": [{"video_url": {"url": "@"}}]}]},
    "messages.0.content.0.audio_url.url": {"messages": [{"content": [{"audio_url": {"url": "@"}}]}]},
    "messages.0.content.0.input_audio.url": {"messages": [{"content": [{"input_audio": {"url": "@"}}]}]},
    "input.0.content.0.image_url": {"input": [{"content": [{"type": "input_image", "image_url": "@"}]}]},
    "input.0.content.0.file_url": {"input": [{"content": [{"type": "input_file", "file_url": "@"}]}]},
    "input.0.output.0.image_url": {
        "input": [{"type": "function_call_output", "output": [{"image_url": "@"}]}]
    },
    "input.1.image": {"input": [{"text": "x"}, {"image": "@"}]},
    "input.0.video": {"input": [{"video": "@"}]},
    "query.0.image_url.url": {"query": [{"image_url": {"url": "@"}}], "documents": ["x"]},
    "documents.0.0.video_url.url": {"query": "x", "documents": [[{"video_url": {"url": "@"}}]]},
    "image_data": {"prompt": "x", "image_data": "@"},
    "image_data.1": {"prompt": "x", "image_data": [None, "@"]},
    "video_data.0.0.url": {"prompt": "x", "video_data": [[{"url": "@"}]]},
    "audio_data": {"prompt": "x", "audio_data": "@"},
}


def filled(template: Any, value: str) -> Any:
    return json.loads(json.dumps(template).replace('"@"', json.dumps(value)))


@pytest.mark.parametrize("field", BODIES)
def test_every_reference_is_found_named_and_refused_unless_it_is_a_data_url(field: str) -> None:
    for value in ("/etc/passwd", "http://example.org/a.png", PIXEL):
        answer, seen = send(filled(BODIES[field], value), MediaPolicy())
        assert (answer.status, answer.code, seen) == (400, "media_not_allowed", None)
        assert str(answer.message).startswith(f"{field}: ")
        assert json.loads(answer.body)["error"]["param"] == field
    body = filled(BODIES[field], DATA_URL)
    assert send(body, MediaPolicy())[1] is body


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"content": "image_url: /etc/passwd"}]},
        {"messages": [{"content": "x"}], "tools": [{"function": {"parameters": {"image_url": "/a"}}}]},
        {"messages": [{"tool_calls": [{"function": {"arguments": {"image": "/a"}}}]}]},
        {"messages": [{"content": "x"}], "response_format": {"json_schema": {"schema": {"image": "/a"}}}},
        {"prompt": "x", "metadata": {"image_url": "/a"}},
        {"input": [{"text": "x", "image": None}]},
        {"input": [{"content": [{"input_audio": {"data": PIXEL, "format": "wav"}}]}]},
    ],
)
def test_texts_schemas_and_inline_sounds_are_no_references(body: dict[str, Any]) -> None:
    assert send(body, MediaPolicy())[1] is body


@pytest.mark.parametrize(
    "url",
    [
        "data:../../etc/passwd",
        "data:text/plain,hello",
        "data:image/png;base64,../../etc/passwd",
        "data:/etc/x;base64,AAAA",
        "data:image/../..;base64,AAAA",
        f"data:image/png;base64,{PIXEL}\n",
        f" {DATA_URL}",
        f"DATA:image/png;base64,{PIXEL}",
        "",
    ],
)
def test_what_only_looks_like_a_data_url_is_refused(url: str) -> None:
    assert send(chat(url), MediaPolicy())[0].code == "media_not_allowed"


def test_inline_sound_must_be_base64() -> None:
    body = {"messages": [{"content": [{"input_audio": {"data": "../x", "format": "wav"}}]}]}
    answer, _ = send(body, MediaPolicy())
    assert answer.message == "messages.0.content.0.input_audio.data: is not base64"


names = st.sampled_from(
    ["image_url", "image", "url", "data", "content", "type", "video_data", "input_audio", "x"]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([DATA_URL, PIXEL, "/etc/passwd", "http://a/b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["messages", "input", "documents", "image_data"]), values))
def test_whatever_a_body_looks_like_an_engine_sees_data_urls_only(body: dict[str, Any]) -> None:
    answer, seen = send(body, MediaPolicy())
    assert (seen is None) == (answer.code == "media_not_allowed")
    for reference in references(seen or {}):
        assert reference.value.startswith("data:") or reference.inline


def test_a_body_nested_deeply_is_searched() -> None:
    body: dict[str, Any] = {"image_url": "/etc/passwd"}
    for _ in range(50_000):
        body = {"content": [body]}
    with pytest.raises(MediaRefused):
        MediaPolicy().check({"messages": [body]})


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `in` that is allowed, `out` and `in-side` that are not, and links between them."""
    root = Path(os.path.realpath(tmp_path_factory.mktemp("media")))
    for folder, content in (("in/sub", PUBLIC), ("out", SECRET), ("in-side", SECRET)):
        (root / folder).mkdir(parents=True)
        (root / folder / "a.png").write_bytes(content)
    (root / "in" / "leaves").symlink_to("../out")
    (root / "in" / "leaves.png").symlink_to(root / "out" / "a.png")
    (root / "in" / "stays.png").symlink_to("sub/a.png")
    (root / "in" / "loop").symlink_to("loop")
    (root / "out" / "enters").symlink_to("../in")
    os.mkfifo(root / "in" / "pipe.png")
    return root


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}", "file:{}", "FILE://{}"])
@pytest.mark.parametrize(
    "name", ["in/sub/a.png", "in/stays.png", "out/enters/sub/a.png", "in/./sub/../sub/a.png"]
)
def test_a_file_below_an_allowed_folder_becomes_a_data_url(form: str, name: str, tree: Path) -> None:
    policy = MediaPolicy.of([str(tree / "in")], [])
    body = chat(form.format(tree / name))
    _, seen = send(body, policy)
    assert url_of(seen) == "data:image/png;base64," + base64.b64encode(PUBLIC).decode()
    assert url_of(body) == form.format(tree / name), "the line itself stays as it is"


def test_a_relative_path_starts_where_the_command_does(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "in")
    policy = MediaPolicy.of(["."], [])
    assert url_of(send(chat("sub/a.png"), policy)[1]).startswith("data:image/png")
    for path in ("../out/a.png", "leaves/a.png", "none.png", "", "."):
        assert send(chat(path), policy)[0].code == "media_not_allowed"


parts = st.sampled_from(
    [
        "in",
        "out",
        "in-side",
        "sub",
        "a.png",
        "leaves",
        "leaves.png",
        "stays.png",
        "enters",
        "loop",
        "pipe.png",
    ]
    + [
        "..",
        ".",
        "",
        "%2e%2e",
        "..%2f",
        "%00",
        "\0",
        "~",
        "\\..\\",
        "a.png?x",
        "a.png#x",
        "IN",
        " ",
        "\ud800",
        "x" * 300,
    ]
)
starts = st.sampled_from(
    ["{root}", "{root}/in", "file://{root}", "file://localhost{root}/in", "file://evil{root}"]
)


@given(start=starts, path=st.lists(parts, max_size=6), slash=st.sampled_from(["/", "//", "/./", "%2f"]))
@example(start="{root}/in", path=["leaves", "a.png"], slash="/")
@example(start="{root}/in", path=["sub", "..", "..", "out", "a.png"], slash="/")
@example(start="file://{root}/in", path=["%2e%2e", "out", "a.png"], slash="/")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_a_path_never_leaves_the_allowed_folders(start: str, path: list[str], slash: str, tree: Path) -> None:
    value = start.replace("{root}", str(tree)) + "".join(slash + part for part in path)
    answer, seen = send(chat(value), MediaPolicy.of([str(tree / "in")], []))
    assert answer.code == "media_not_allowed" or base64.b64decode(url_of(seen).split(",")[1]) == PUBLIC


def test_a_link_that_appears_after_the_check_leads_nowhere(tree: Path, tmp_path: Path) -> None:
    folder = Path(os.path.realpath(tmp_path))
    for name in ("folder", "file.png"):
        (folder / name).symlink_to(tree / "out" / ("a.png" if name == "file.png" else ""))
    for way in (("folder", "a.png"), ("file.png",)):
        with pytest.raises(OSError, match=r"Errno"):
            LocalFile(folder, way).read()


def test_a_file_that_cannot_be_read_is_told_from_one_that_may_not(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = MediaPolicy.of([str(tree / "in")], [])
    monkeypatch.setattr("sglang.batch.media.MAX_BYTES", len(PUBLIC) - 1)
    answer, _ = send(chat(str(tree / "in/sub/a.png")), policy)
    assert (answer.status, answer.code) == (400, "media_unavailable")


def served(replies: dict[str, httpx.Response], asked: list[str]) -> Callable[[httpx.Request], httpx.Response]:
    def serve(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return replies.get(str(request.url), httpx.Response(404))

    return serve


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        ("example.org", "http://example.org/a.png"),
        ("example.org", "https://example.org:443/a.png"),
        ("Example.ORG", "HTTPS://EXAMPLE.org/a.png"),
        ("example.org:443", "https://example.org/a.png"),
        ("example.org:8080", "http://example.org:8080/a.png"),
        ("bücher.example", "https://xn--bcher-kva.example/a.png"),
        ("[::1]:8080", "http://[::1]:8080/a.png"),
    ],
)
def test_what_an_allowed_host_has_becomes_a_data_url(allowed: str, url: str) -> None:
    _, seen = send(chat(url), MediaPolicy.of([], [allowed]), lambda request: reply_with(PUBLIC))
    assert url_of(seen) == "data:image/png;base64," + base64.b64encode(PUBLIC).decode()


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org:8080/",
        "http://sub.example.org/",
        "http://example.org.evil.test/",
        "http://example.org./",
        "http://example.org@evil.test/",
        "http://evil.test\\@example.org/",
        "http://user@example.org/",
        "http://evil.test#@example.org/",
        "http://evil.test?example.org",
        "http:example.org",
        "http:///example.org",
        "http://example.org\t.evil.test/",
        "http://exa\nmple.org/",
        "ftp://example.org/a.png",
        "//example.org/a.png",
        "http://[::1/",
        "http://example.org:99999999/",
        "http://example.org:0/",
    ],
)
def test_no_other_host_is_asked(url: str) -> None:
    asked: list[str] = []
    answer, _ = send(chat(url), MediaPolicy.of([], ["example.org"]), served({}, asked))
    assert (answer.code, asked) == ("media_not_allowed", [])


pieces = st.sampled_from(
    [
        "http://",
        "https://",
        "HTTP://",
        "//",
        "example.org",
        "evil.test",
        "@",
        ":",
        "80",
        "8080",
        "/",
        "\\",
        "#",
        "?",
    ]
    + [
        "..",
        "%2e",
        "%40",
        "\t",
        "\n",
        " ",
        "\0",
        ".",
        "[::1]",
        "。",
        "ex\u00adample.org",
        "user:pw@",
        "data:",
        "a.png",
    ]
)
tricky = st.builds("".join, st.lists(pieces, max_size=8))


@given(
    url=st.builds("http://{}{}".format, st.sampled_from(["", "example.org"]), tricky) | tricky,
    hops=st.lists(tricky, max_size=4),
)
@example(url="http://example.org/", hops=["http://evil.test/"])
@example(url="http://example.org/", hops=["//evil.test/"])
@example(url="http://example.org/", hops=["/b", "https://example.org:443/c", "http://example.org@evil.test"])
@settings(max_examples=200)
def test_a_url_never_leaves_the_allowed_hosts_not_by_redirects_either(url: str, hops: list[str]) -> None:
    asked: list[httpx.Request] = []

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if len(asked) > len(hops):
            return reply_with(PUBLIC)
        return httpx.Response(
            302, headers={"Location": hops[len(asked) - 1].encode("utf-8", "surrogatepass")}
        )

    answer, seen = send(chat(url), MediaPolicy.of([], ["example.org"]), serve)
    for request in asked:
        assert request.url.host == "example.org"
        assert request.headers["Host"] == "example.org"
        assert request.url.port is None
    if seen is not None:
        assert url_of(seen).startswith("data:")
    else:
        assert answer.status == 400


def test_redirects_within_the_allowed_set_are_followed_some_times() -> None:
    policy = MediaPolicy.of([], ["a.test", "b.test:81"])

    def serve(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/again":
            return httpx.Response(302, headers={"Location": "/again"})
        if request.url.host == "a.test":
            return httpx.Response(301, headers={"Location": "http://b.test:81/b.png"})
        return reply_with(PUBLIC)

    assert url_of(send(chat("http://a.test/a.png"), policy, serve)[1]).startswith("data:image/png;base64,")
    answer, _ = send(chat("http://a.test/again"), policy, serve)
    assert answer.code == "media_unavailable"
    assert f"over {MAX_REDIRECTS} redirects" in str(answer.message)


@pytest.mark.parametrize("reply", [httpx.Response(404), reply_with(b"x" * 65)])
def test_a_download_that_fails_is_an_error_record(
    reply: httpx.Response, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang.batch.media.MAX_BYTES", 64)
    answer, seen = send(chat("http://a.test/a.png"), MediaPolicy.of([], ["a.test"]), lambda request: reply)
    assert (answer.status, answer.code, seen) == (400, "media_unavailable", None)


def test_a_real_server_is_asked_once_and_its_redirect_not_followed_off_the_set(
    loopback: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, asked = loopback
    monkeypatch.setenv("NO_PROXY", "*")
    policy = MediaPolicy.of([], [f"127.0.0.1:{port}"])
    base = f"http://127.0.0.1:{port}"
    assert url_of(send(chat(f"{base}/a.png"), policy)[1]).endswith(base64.b64encode(PUBLIC).decode())
    answer, _ = send(chat(f"{base}/away"), policy)
    assert answer.code == "media_not_allowed"
    assert f"host localhost:{port} is not" in str(answer.message)
    assert asked == ["/a.png", "/away"]


@pytest.fixture
def loopback() -> Iterator[tuple[int, list[str]]]:
    """A server on 127.0.0.1 whose /away redirects to itself by another name; its port, what it was asked."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302 if self.path == "/away" else 200)
            if self.path == "/away":
                self.send_header("Location", f"http://localhost:{self.server.server_port}/a.png")
            self.send_header("Content-Length", "0" if self.path == "/away" else str(len(PUBLIC)))
            self.end_headers()
            if self.path != "/away":
                self.wfile.write(PUBLIC)

        def log_message(self, *args: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, asked
        server.shutdown()
        thread.join()


def policy_of(*argv: str) -> MediaPolicy:
    parser = argparse.ArgumentParser()
    add_media_arguments(parser)
    return media_policy(parser.parse_args(argv))


def test_both_flags_may_be_repeated(tmp_path: Path) -> None:
    policy = policy_of(
        *("--allow-local-media", str(tmp_path), "--allow-local-media", "/"),
        *("--allow-remote-media", "a.test", "--allow-remote-media", "b.test:81"),
    )
    assert policy.folders == (Path(os.path.realpath(tmp_path)), Path("/"))
    assert policy.hosts == {"a.test:80", "a.test:443", "b.test:81"}


@pytest.mark.parametrize(
    "host", ["http://a.test", "a.test/x", "u@a.test", "*.test", "a.test:x", "", "a b", "a.test:70000", "::1"]
)
def test_a_host_is_a_name_and_a_port(host: str) -> None:
    with pytest.raises(BadUsage, match="must be HOST or HOST:PORT"):
        policy_of("--allow-remote-media", host)


def test_a_folder_that_is_none_is_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="is no folder"):
        policy_of("--allow-local-media", str(tmp_path / "none"))

"""Checkpoints and reference answers that the end-to-end tests of a session share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints import make_llama, make_qwen2_vl
from servers import BLEND, Server, running_server
from traffic import CLEAR_MARGIN, Reference, make_chats, make_texts, run_program, send_chats

CHATS = 60
TEXTS = 20


@pytest.fixture(scope="session", autouse=True)
def stop_servers_when_terminated() -> Iterator[None]:
    """A SIGTERM (from `timeout`, or a CI that gives up) unwinds the fixtures instead of orphaning servers."""
    previous = signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))
    yield
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl"))


@pytest.fixture(scope="session")
def server(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Under blend, and asleep while other tests of the session run."""
    log = tmp_path_factory.mktemp("blend") / "server.log"
    with running_server(llama, log, *BLEND, "--enable-cache-report", "--sleep-on-idle") as running:
        yield running


@pytest.fixture(scope="session")
def reference(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    log = tmp_path_factory.mktemp("fcfs") / "server.log"
    chats, texts = make_chats(CHATS + 20), make_texts(TEXTS + 10)
    with running_server(llama, log, "--schedule-policy", "fcfs") as server:
        chat_answers = send_chats(server, chats)
        text_answers = run_program(server, texts)
        assert "blend" not in server.info()["internal_states"][0], "the plugin is not inert under fcfs"
    clear_chats = [pair for pair in zip(chats, chat_answers, strict=True) if pair[1].margin > CLEAR_MARGIN]
    clear_texts = [pair for pair in zip(texts, text_answers, strict=True) if pair[1].margin > CLEAR_MARGIN]
    assert len(clear_chats) >= CHATS
    assert len(clear_texts) >= TEXTS
    return Reference(
        [chat for chat, _ in clear_chats[:CHATS]],
        [answer.tokens for _, answer in clear_chats[:CHATS]],
        [text for text, _ in clear_texts[:TEXTS]],
        [answer.tokens for _, answer in clear_texts[:TEXTS]],
    )

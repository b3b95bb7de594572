"""`sglang-batch serve --endpoint` as a user starts it."""

import sys
from pathlib import Path

import pytest
from services import EchoService, assert_whole, counts, create, lines, wait_for
from web import WebServer, serving


class RemoteService(EchoService):
    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder)
        self.endpoint = url

    def command(self, *flags: str) -> list[str]:
        serve = [sys.executable, "-m", "sglang.batch.cli", "serve", "--store", str(self.store)]
        return [*serve, "--port", "0", "--endpoint", self.endpoint, *flags]


def test_batches_are_answered_by_a_running_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = WebServer(None)
    with serving(server):
        service = RemoteService(tmp_path, server.url)
        try:
            client = service.start()
            made = create(client, lines(20)), create(client, lines(20, name="s"))
            for batch, name in zip(made, "rs", strict=True):
                ended = wait_for(client, batch.id)
                assert (ended.status, counts(ended)) == ("completed", (20, 20, 0))
                assert_whole(client, ended, [f"{name}{i}" for i in range(20)])
            assert service.terminate() == 0
        finally:
            service.kill()

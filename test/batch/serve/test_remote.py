"""`sglang-batch serve --endpoint`: batches through a running server."""

from pathlib import Path

import pytest
from services import EchoService, assert_whole, counts, create, lines, wait_for
from web import WebServer, serving


def test_batches_are_answered_by_a_running_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = WebServer(None)
    with serving(server):
        service = EchoService(tmp_path)
        try:
            client = service.start("--endpoint", server.url)
            made = create(client, lines(20)), create(client, lines(20, name="s"))
            for batch, name in zip(made, "rs", strict=True):
                ended = wait_for(client, batch.id)
                assert (ended.status, counts(ended)) == ("completed", (20, 20, 0))
                assert_whole(client, ended, [f"{name}{i}" for i in range(20)])
            assert service.terminate() == 0
        finally:
            service.kill()

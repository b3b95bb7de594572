"""`sglang-batch serve --endpoint` before a real SGLang server, with the official client."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from openai import OpenAI

from servers import Server
from traffic import make_chats

SECONDS = 300


def test_a_batch_goes_through_the_service_to_a_running_server(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    said = tmp_path / "said.txt"
    flags = ["--store", str(tmp_path / "store"), "--port", "0", "--endpoint", server.url]
    command = [sys.executable, "-m", "sglang.batch.cli", "serve", *flags]
    with said.open("wb") as sink:
        service = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=sink)
    try:
        _run_a_batch(_url(service, said))
    finally:
        service.terminate()
        assert service.wait(60) == 0, said.read_text()


def _url(service: "subprocess.Popen[bytes]", said: Path) -> str:
    deadline = time.monotonic() + SECONDS
    while not (found := re.search(r"listening on (\S+)", said.read_text())):
        assert service.poll() is None, said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found[1]


def _run_a_batch(url: str) -> None:
    client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=SECONDS)
    bodies = []
    for chat in make_chats(6):
        body = chat.body()
        bodies.append(body | body.pop("extra_body"))
    lines = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for i, body in enumerate([*bodies, {**bodies[0], "max_tokens": -1}])
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    deadline = time.monotonic() + SECONDS
    while (batch := client.batches.retrieve(batch.id)).status not in ("completed", "failed", "expired"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
    assert batch.status == "completed", batch
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (6, 1)
    answered = client.files.content(batch.output_file_id or "").read().splitlines()
    records = {record["custom_id"]: record for record in map(json.loads, answered)}
    assert sorted(records) == [str(i) for i in range(6)]
    for record in records.values():
        (choice,) = record["response"]["body"]["choices"]
        assert choice["response_token_ids"]
    (refused,) = map(json.loads, client.files.content(batch.error_file_id or "").read().splitlines())
    assert (refused["custom_id"], refused["error"]) == ("6", None)
    assert refused["response"]["status_code"] == 400

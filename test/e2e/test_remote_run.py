"""`sglang-batch run` with a real engine, a server's, its own, or one in an actor of Ray: the same answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from servers import BLEND, Server
from traffic import Reference

SECONDS = 900


def run(folder: Path, reference: Reference, *flags: str) -> tuple[list[tuple[int, ...]], dict[str, Any]]:
    """Tokens of the reference's chats in their order, and the report."""
    lines = []
    for i, chat in enumerate(reference.chats):
        body = chat.body()
        body |= body.pop("extra_body")
        request = {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps(request) + "\n")
    (folder / "in.jsonl").write_text("".join(lines))
    files = ["-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl")]
    report = folder / "report.json"
    command = [sys.executable, "-m", "sglang.batch.cli", "run", *files, "--report", str(report), *flags]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    records = [json.loads(text) for text in (folder / "out.jsonl").read_text().splitlines()]
    choices = {record["custom_id"]: record["response"]["body"]["choices"][0] for record in records}
    assert len(choices) == len(records)
    tokens = [tuple(choices[str(i)]["response_token_ids"]) for i in range(len(lines))]
    return tokens, json.loads(report.read_text())


def test_a_server_under_blend_gets_the_pool_and_gives_the_tokens_of_fcfs(
    server: Server, reference: Reference, tmp_path: Path
) -> None:
    tokens, report = run(tmp_path, reference, "--endpoint", server.url)
    assert tokens == reference.chat_tokens
    assert report["policy"] == "blend by the server"
    assert report["kv_capacity"] == 4096
    assert report["blend"] is not None
    assert report["sharing"] > 0.2


def engine(llama: Path) -> tuple[str, ...]:
    return ("--model-path", str(llama), "--device", "cpu", "--dtype", "float32", "--random-seed", "0", *BLEND)


def test_in_process_gives_the_same(llama: Path, reference: Reference, tmp_path: Path) -> None:
    assert run(tmp_path, reference, *engine(llama))[0] == reference.chat_tokens


def test_a_replica_on_ray_gives_the_same(llama: Path, reference: Reference, tmp_path: Path) -> None:
    tokens, report = run(tmp_path, reference, "--ray", *engine(llama))
    assert tokens == reference.chat_tokens
    assert report["policy"] == "blend"
    assert report["kv_capacity"] == 4096
    assert report["blend"] is not None

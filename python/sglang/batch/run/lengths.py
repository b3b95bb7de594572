"""How long answers will be, by what earlier answers to the same template were.

A template is the beginning of a prompt with its URL and its limit of output tokens. What a job has answered
is read back from its journal; what jobs before it have learned is kept in a small file of the user's cache.
The planner gets an expected length with each request: that decides when it runs, and never what is answered.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from sglang.batch.records import BatchRequest, digest, parse_line
from sglang.batch.run.journal import Journal
from sglang.batch.run.scan import InputLines
from sglang.batch.run.schema import transaction
from sglang.batch.smollm2 import cache_folder

EXPECTED_OUTPUT = "blend_expected_output"
"""Entry of `custom_params` that the blend policy reads, in output tokens; `runtime.pool` has its twin."""

BEGINNINGS = (256, 48, 0)
"""Characters of a prompt that make a template, the finest first; 0: all prompts of a URL and limit."""

ENOUGH = 4
"""Answers from which a template tells about the next one."""

READ = 4096
"""Answered lines that are read back from a journal at most."""

KEPT = 100_000
"""Templates that the cache keeps, those used last; about 60 bytes each."""

TABLES = """
CREATE TABLE IF NOT EXISTS template (
  key BLOB PRIMARY KEY, answers INTEGER NOT NULL, tokens INTEGER NOT NULL, seconds REAL NOT NULL
) STRICT
"""


class Lengths:
    """Answers and output tokens by template.

    Args:
        model: what the lengths belong to, such as a fingerprint.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._learned: dict[bytes, tuple[int, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._learned)

    def learn(self, answered: Iterable[tuple[BatchRequest, int]]) -> None:
        """Take note of answers, instead of what was known of their templates before.

        Args:
            answered: requests, and the output tokens that they got.
        """
        learned: dict[bytes, tuple[int, int]] = {}
        for request, tokens in answered:
            answers = _answers(request.body)
            for key in self._keys(request):
                count, total = learned.get(key, (0, 0))
                learned[key] = count + answers, total + tokens
        self._learned |= {key: known for key, known in learned.items() if known[0] >= ENOUGH}

    def expected(self, request: BatchRequest) -> int | None:
        """Mean output tokens of the finest template that is known; None where none is."""
        for key in self._keys(request):
            if (known := self._learned.get(key)) is not None:
                return max(round(known[1] / known[0]), 1)
        return None

    def told(self, request: BatchRequest) -> BatchRequest:
        """Tell the planner what is expected of a request; a `custom_params` that is no object stays."""
        params = request.body.get("custom_params")
        if not self._learned or not (params is None or isinstance(params, dict)):
            return request
        expected = self.expected(request)
        if expected is None:
            return request
        params = {**(params or {}), EXPECTED_OUTPUT: expected}
        return replace(request, body={**request.body, "custom_params": params})

    def _keys(self, request: BatchRequest) -> Iterator[bytes]:
        text = _beginning(request.body, BEGINNINGS[0])
        limit = request.body.get("max_completion_tokens") or request.body.get("max_tokens")
        for length in BEGINNINGS:
            yield digest(msgspec.json.encode([self._model, request.url, repr(limit), length, text[:length]]))

    # What is kept from one job to the next.

    def load(self, path: Path) -> None:
        """Read what earlier jobs have learned of any model; a file that is damaged has nothing."""
        with contextlib.suppress(OSError, sqlite3.Error), _open(path) as db:
            known = db.execute("SELECT key, answers, tokens FROM template").fetchall()
            self._learned = {key: (answers, tokens) for key, answers, tokens in known} | self._learned

    def save(self, path: Path) -> None:
        """Keep what is known for later jobs; without a place to write nothing is kept."""
        now = time.time()
        rows = [(key, answers, tokens, now) for key, (answers, tokens) in self._learned.items()]
        with contextlib.suppress(OSError, sqlite3.Error), _open(path) as db, transaction(db):
            db.executemany("INSERT OR REPLACE INTO template VALUES (?, ?, ?, ?)", rows)
            db.execute(
                "DELETE FROM template WHERE key NOT IN"
                " (SELECT key FROM template ORDER BY seconds DESC LIMIT ?)",
                (KEPT,),
            )


def answered_lines(journal: Journal, inputs: InputLines) -> Iterator[tuple[BatchRequest, int]]:
    """Read answered requests of a job, evenly spread, and the output tokens that they got."""
    for line, tokens in journal.answered(READ):
        request = parse_line(line.number, inputs.read(line))
        if isinstance(request, BatchRequest):
            yield request, tokens


def lengths_file() -> Path:
    """Where learned lengths are kept: `$XDG_CACHE_HOME/sglang-blend/lengths.sqlite`."""
    return cache_folder() / "lengths.sqlite"


@contextlib.contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR, 0o600))
    if path.is_symlink() or path.stat().st_uid != os.geteuid():
        raise PermissionError(f"{path}: is not ours")
    db = sqlite3.connect(path, timeout=10, isolation_level=None)
    try:
        db.execute(TABLES)
        yield db
    finally:
        db.close()


def _beginning(body: Mapping[str, Any], length: int) -> str:
    """The first characters of a prompt; message contents behind each other."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        prompt = body.get("prompt")
        if isinstance(prompt, list) and prompt:
            prompt = prompt[0]
        return prompt[:length] if isinstance(prompt, str) else repr(prompt)[:length]
    text = ""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else [{"text": content}]:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                text += f"{part['text'][:length]}\n"
        if len(text) >= length:
            break
    return text[:length]


def _answers(body: Mapping[str, Any]) -> int:
    """Answers that a request asks for: several choices of one prompt, or several prompts."""
    choices, prompt = body.get("n"), body.get("prompt")
    prompts = 1
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompts = len(prompt)
    return prompts * max(choices if isinstance(choices, int) else 1, 1)

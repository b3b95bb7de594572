"""Jobs with the echo engine, started as processes of their own, and what must hold of their files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sglang.batch.run.journal import Journal, Log

SECONDS = 120


def request(custom_id: str, prompt: str | None = None, **body: Any) -> bytes:
    """An input line; `body` has further fields of its body."""
    body = {"prompt": prompt if prompt is not None else custom_id, **body}
    fields = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}
    return json.dumps(fields).encode() + b"\n"


class EchoJob:
    """One job in a folder: input, output, and the log of what its engines computed."""

    def __init__(self, folder: Path, lines: list[bytes], *, outputs: Path | None = None) -> None:
        self.folder = folder
        self.input = folder / "in.jsonl"
        self.input.write_bytes(b"".join(lines))
        self.output = (outputs or folder) / "out.jsonl"
        self.errors = Path(f"{self.output}.errors.jsonl")
        self.partial = Path(f"{self.output}.partial")
        self.journal = Path(f"{self.output}.journal")
        self.echo_log = folder / "echo.log"

    def start(self, *flags: str, inputs: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
        script = str(Path(__file__).with_name("echo_run.py"))
        files = ["-i", *(inputs or (str(self.input),)), "-o", str(self.output)]
        command = [sys.executable, script, *files, "--echo-log", str(self.echo_log), *flags]
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)

    def run(self, *flags: str, stdin: bytes | None = None, **options: Any) -> tuple[int, str]:
        """Run to the end; returns exit code and what was said."""
        if stdin is not None:
            path = self.folder / "stdin"
            path.write_bytes(stdin)
            options["stdin"] = path.open("rb")
        process = self.start(*flags, **options)
        _, said = process.communicate(timeout=SECONDS)
        return process.returncode, said

    def kill_after_records(self, count: int, *flags: str) -> None:
        """Start a run and kill it as soon as `count` answers are in its file."""
        process = self.start(*flags)
        deadline = time.monotonic() + SECONDS
        while process.poll() is None and not _count_lines(self.partial) >= count:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.communicate(timeout=SECONDS)

    def computed(self) -> Counter[str]:
        """How often each custom_id was computed by all runs."""
        return Counter(self.echo_log.read_text().split()) if self.echo_log.exists() else Counter()

    def records(self, path: Path | None = None) -> list[dict[str, Any]]:
        """The records of a finished file."""
        raw = (path or self.output).read_bytes()
        assert raw.endswith(b"\n") or not raw
        return [json.loads(line) for line in raw.splitlines()]

    def ids(self) -> list[str]:
        """custom_ids of all records, sorted."""
        records = self.records() + (self.records(self.errors) if self.errors.exists() else [])
        assert len({record["id"] for record in records}) == len(records)
        return sorted(str(record["custom_id"]) for record in records)

    def done(self) -> set[int]:
        """Positions that the journal says are done, after checking that their records are in the files."""
        if not self.journal.exists():
            return set()
        try:
            journal = Journal(self.journal)
        except Exception:
            return set()
        try:
            assert journal.check() == []
            done = set()
            for log, path in ((Log.ANSWERS, self.output), (Log.ERRORS, self.errors)):
                spans = list(journal.spans(log, by_position=True))
                partial = Path(f"{path}.partial")
                raw = (partial if partial.exists() else path).read_bytes() if spans else b""
                for position, span in spans:
                    json.loads(raw[span.offset : span.end])
                    done.add(position)
            return done
        finally:
            journal.close()

    def leftovers(self) -> set[str]:
        """Names beside input and output that are left."""
        known = {"in.jsonl", "echo.log", "stdin"}
        return {path.name for path in self.folder.iterdir()} - known


def _count_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


FAULTS = "all" if os.environ.get("SGLANG_BATCH_FAULTS") == "all" else "quick"
"""How much is tried: `make faults` tries all."""

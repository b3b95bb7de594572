"""`sglang-batch status OUTPUT`: how far a job is, read from its journal, beside the run or after it."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from sglang.batch.run.files import JobFiles
from sglang.batch.run.journal import Journal
from sglang.batch.run.lock import holder
from sglang.batch.run.rounds import START
from sglang.batch.run.schema import JournalUnusable
from sglang.batch.usage import BadUsage

EVENTS = 5
"""Events that are shown."""


def status(output: Path, *, check: bool) -> int:
    """Print how far a job is.

    Args:
        check: also check the journal's invariants.

    Returns:
        0, or 1 if the check has found something.

    Raises:
        BadUsage: there is no journal, or it cannot be read.
    """
    files = JobFiles.of(output, None)
    if not files.journal.exists():
        raise BadUsage(f"{output}: no job has this output here ({files.journal} does not exist)")
    try:
        journal = Journal(files.journal, read_only=True)
        try:
            print(f"{output}: {_text(journal, holder(files.lock), time.time())}")
            problems = journal.check() if check else []
        finally:
            journal.close()
    except (JournalUnusable, sqlite3.Error) as error:
        raise BadUsage(f"{files.journal}: cannot be read: {error}") from error
    for problem in problems:
        print(f"  broken          {problem}")
    return 1 if problems else 0


def _text(journal: Journal, running: str | None, now: float) -> str:
    tally, state = journal.tally(), journal.get("state")
    left = tally.lines - tally.done
    if running is not None:
        title = f"running, {running}"
    elif state == "finished" and not left:
        title = "finished"
    else:
        title = "stopped; the same `sglang-batch run` command continues"
    rows = [
        ("lines", f"{tally.lines:,}{' so far, the input is being read' if state == 'scanning' else ''}"),
        ("answered", f"{tally.answered:,}"),
        ("with an error", f"{tally.failed:,}"),
        *((f"  {code}", f"{count:,}") for code, count in tally.codes.most_common()),
        ("left", f"{left:,}{_remaining(journal, tally.done, left, now) if running else ''}"),
        ("tokens", f"{tally.prompt_tokens:,} in, {tally.completion_tokens:,} out"),
    ]
    if tally.twins:
        rows.append(("same as others", f"{tally.twins:,} lines, {tally.twin_tokens:,} tokens not computed"))
    for seconds, kind, detail in journal.events(EVENTS):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
        rows.append((when, f"{kind}: {detail}"))
    return "\n".join([title, *(f"  {name:<21}{value}" for name, value in rows)])


def _remaining(journal: Journal, done: int, left: int, now: float) -> str:
    """Say how long the rest takes at the speed of this run so far; nothing before there is one."""
    starts = [(seconds, detail) for seconds, kind, detail in journal.events(EVENTS) if kind == START]
    if not starts or not left:
        return ""
    seconds, detail = starts[-1]
    rate = (done - int(detail.split()[0])) / max(now - seconds, 1e-3)
    return f", {left / rate:,.0f} s at {rate:,.1f} lines/s" if rate > 0 else ""

"""The end of a job: its record logs get their final names, in order or without dead records if need be, and a
Parquet output is made of them.

Each step may be the last before a crash. The state says where to go on: `finishing`, everything is still in
the partial files; `renaming`, the journal describes the new files, and only names are left to change.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

from sglang.batch.input.source import Source
from sglang.batch.run.files import JobFiles, finishing, partial, sync_folder
from sglang.batch.run.journal import Journal, Log
from sglang.batch.run.record_log import RecordLog, Span

READ_AHEAD = 256
"""Records that are held in memory while a log is written in another order."""


def finish(
    journal: Journal,
    logs: dict[Log, RecordLog],
    files: JobFiles,
    sources: Sequence[Source],
    *,
    in_order: bool,
) -> None:
    """Give the logs their final names; error logs without a record are removed.

    Args:
        sources: the input, whose columns a Parquet output keeps.
        in_order: write records in the order of lines. That, or records that are dead, take another copy of
            the log on the disk for a while.
    """
    journal.set(state="finishing")
    moved = {}
    for log, file in logs.items():
        dead = journal.record_bytes(log) != file.length
        if dead or (in_order and not _is_in_order(journal, log)):
            _write_anew(file, journal.spans(log, by_position=in_order), finishing(files.logs[log]))
            moved[log] = in_order
    if files.parquet:
        from sglang.batch.run.parquet import write_parquet

        write_parquet(finishing(files.output), journal, logs[Log.ANSWERS], sources)
    journal.move_records(moved, state="renaming", in_order=in_order)
    rename_logs(journal, files)


def rename_logs(journal: Journal, files: JobFiles) -> None:
    """Change the names, those that are left to change; then the job is finished."""
    for log, path in files.logs.items():
        if finishing(path).exists():
            os.replace(finishing(path), partial(path))
        if log is Log.ERRORS and not journal.length(log):
            partial(path).unlink(missing_ok=True)
        elif partial(path).exists():
            os.replace(partial(path), path)
        sync_folder(path.parent)
    if files.parquet and finishing(files.output).exists():
        os.replace(finishing(files.output), files.output)
        sync_folder(files.output.parent)
    journal.set(state="finished")
    files.remove_work()


def _is_in_order(journal: Journal, log: Log) -> bool:
    spans = (span for _, span in journal.spans(log, by_position=True))
    return all(one.offset < other.offset for one, other in pairwise(spans))


def _write_anew(file: RecordLog, spans: Iterator[tuple[int, Span]], path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as new:
        while page := list(islice(spans, READ_AHEAD)):
            # Read in the order of the disk, written in the order that is wanted.
            records = {span: file.read(span) for _, span in sorted(page, key=lambda item: item[1].offset)}
            new.writelines(records[span] for _, span in page)
        new.flush()
        os.fdatasync(new.fileno())
    sync_folder(path.parent)  # the journal is about to say what is where in it

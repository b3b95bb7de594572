"""A job is opened, whatever the last run of it left behind, or a new one is begun."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from sglang.batch.input.source import Source
from sglang.batch.records import BatchFailure, BatchRequest, duplicate, parse_line
from sglang.batch.run.committer import Committer
from sglang.batch.run.files import JobFiles, finishing, partial, sync_folder
from sglang.batch.run.finish import finish, rename_logs
from sglang.batch.run.identity import differences
from sglang.batch.run.journal import Journal, Log, OpenLine
from sglang.batch.run.lengths import answered_lines
from sglang.batch.run.lock import Locked, locked
from sglang.batch.run.record_log import RecordLog, Span
from sglang.batch.run.scan import InputLines, scan
from sglang.batch.run.schema import JournalUnfinished, JournalUnusable
from sglang.batch.run.twins import Twins
from sglang.batch.usage import BadUsage

PAGE = 100
"""Lines that are read from the journal at a time."""


@dataclass(frozen=True)
class Continue:
    """How a job that exists already is continued.

    Attributes:
        restart: set it aside and begin anew.
        retry: run lines again that have an error record; those with the codes, where codes are given.
        in_order: records are in the order of lines at the end.
        keep_journal: leave the journal when the job is finished.
        dedupe: run the first of several lines that ask for the same answer, and give it to all.
    """

    restart: bool = False
    retry: bool = False
    codes: tuple[str, ...] | None = None
    in_order: bool = False
    keep_journal: bool = True
    dedupe: bool = True


@dataclass(frozen=True, slots=True)
class Work:
    """A line that is to get its record.

    Attributes:
        file: name of its input where there are several.
    """

    position: int
    item: BatchRequest | BatchFailure
    file: str | None


class OpenJob:
    """A job that is locked, consistent, and compared with its input."""

    def __init__(
        self,
        files: JobFiles,
        journal: Journal,
        logs: dict[Log, RecordLog],
        sources: Sequence[Source],
        inputs: InputLines,
        how: Continue,
    ) -> None:
        self.files = files
        self.journal = journal
        self.logs = logs
        self._sources = sources
        self._inputs = inputs
        self._how = how

    @property
    def id(self) -> str:
        """The job's id: `batch_` and 32 hexadecimal digits."""
        return str(self.journal.get("id"))

    def answered(self) -> Iterator[tuple[BatchRequest, int]]:
        """Read some of the requests that are answered, and their output tokens.

        Raises:
            BadUsage: a line has changed since the job was opened.
        """
        return answered_lines(self.journal, self._inputs)

    def work(self, told: Callable[[BatchRequest], BatchRequest] = lambda request: request) -> Iterator[Work]:
        """Read the lines that are to be run, in their order; the iterator may run far behind the journal.

        Args:
            told: adds to a request what is to be said of it beyond its line.

        Raises:
            BadUsage: a line has changed since the job was opened.
        """
        after = -1
        while page := self.journal.pending(after=after, limit=PAGE, followers=not self._how.dedupe):
            for line in page:
                yield self._read(line, told)
            after = page[-1].position

    def work_at(
        self, positions: Iterable[int], told: Callable[[BatchRequest], BatchRequest] = lambda request: request
    ) -> Iterator[Work]:
        """Read those of some lines that have no record yet, set aside or not.

        Args:
            told: as of `work`.

        Raises:
            BadUsage: a line has changed since the job was opened.
        """
        for position in positions:
            line = self.journal.open_line(position)
            if line is not None:
                yield self._read(line, told)

    def _read(self, line: OpenLine, told: Callable[[BatchRequest], BatchRequest]) -> Work:
        item = parse_line(line.number, self._inputs.read(line))
        if line.duplicate:
            item = duplicate(item)
        elif isinstance(item, BatchRequest):
            item = told(item)
        return Work(line.position, item, self._inputs.file(line))

    def committer(self, **options: Any) -> Committer:
        """Make what writes the job's records; `options` are those of `Committer`."""
        journal = Journal(self.files.journal)
        if self._how.dedupe:
            options["pages"] = Twins(journal, self._inputs).pages
        return Committer(journal, self.logs, **options)

    def finish(self) -> None:
        """Give the files their final names.

        Raises:
            OSError, sqlite3.Error: the disk failed; opened again, the job is where it was.
            BadUsage: a table whose columns are to be kept has changed.
        """
        finish(self.journal, self.logs, self.files, self._sources, in_order=self._how.in_order)

    def close(self) -> None:
        """Close the files, and leave nothing that a finished job does not need."""
        self._inputs.close()
        if self.journal.get("state") == "finished":
            self.files.remove_work()
            if not self._how.keep_journal:
                self.journal.close()
                self.files.remove_history()
        for file in self.logs.values():
            file.close()


@contextmanager
def open_job(
    files: JobFiles,
    *,
    identity: dict[str, Any],
    sources: Sequence[Source],
    how: Continue,
    say: Callable[[str], object],
) -> Iterator[OpenJob]:
    """Lock an output, repair what was torn, and compare model, flags and input with those of the first run.

    Args:
        identity: what decides answers, see `identity.identity`.

    Raises:
        BadUsage: somebody else works on the output, or it cannot be continued as asked; says what to do.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(files.lock))
        except Locked as error:
            raise BadUsage(f"--output {files.output}: is being written by {error}") from None
        if how.restart:
            for path in files.set_aside():
                say(f"what was there is {path} now")
        journal = _open_journal(files, identity)
        stack.callback(journal.close)
        if changes := differences(journal.get("identity"), identity):
            raise BadUsage(
                f"--output {files.output}: was begun with other settings that decide answers; "
                + "; ".join(changes)
                + ". Use the same ones, or pass --restart"
            )
        if journal.get("state") == "renaming":
            rename_logs(journal, files)
        if journal.get("state") == "finished":
            _check_untouched(journal, files)
        files.make_work()
        inputs = scan(journal, sources, files)
        if how.retry:
            say(f"{journal.retry_failed(how.codes):,} lines with an error record will be run again")
        if journal.get("state") == "scanning":
            journal.set(state="running", inputs=[source.name for source in sources])
        logs = _open_logs(journal, files, in_order=how.in_order, say=say)
        job = OpenJob(files, journal, logs, sources, inputs, how)
        stack.callback(job.close)
        if how.dedupe and any(file.length for file in logs.values()):
            late = Twins(journal, inputs).write_late(logs)
            if late:
                say(f"{late:,} lines get the record of an equal line that is done already")
        yield job


def _open_journal(files: JobFiles, identity: dict[str, Any]) -> Journal:
    id = f"batch_{uuid.uuid4().hex}"
    if files.journal.exists():
        try:
            journal = Journal(files.journal)
            finished = journal.get("state") == "finished"
            # A finished job of which every line is to run again has no history, but still its final names.
            if finished or journal.has_history() or any(path.exists() for path in files.logs.values()):
                return journal
            id = str(journal.get("id", id))  # by which an engine that outlived its run is found
            journal.close()  # nothing would be lost, whatever has changed meanwhile
            files.remove_journal()
            for path in files.logs.values():
                partial(path).unlink(missing_ok=True)
        except JournalUnfinished:
            files.remove_journal()
        except JournalUnusable as error:
            raise BadUsage(
                f"{error}; answers are in {partial(files.answers)} or {files.answers}; --restart sets"
                " everything aside and begins anew"
            ) from error
    files.check_free()
    journal = Journal(files.journal, create=True)
    journal.set(identity=identity, state="scanning", id=id, created=time.time())
    sync_folder(files.output.parent)
    return journal


def _check_untouched(journal: Journal, files: JobFiles) -> None:
    """Check that finished files are as they were left, before anything is written into them."""
    for log, path in files.logs.items():
        length = journal.length(log)
        size = path.stat().st_size if path.exists() else 0
        if size != length:
            raise BadUsage(
                f"{path}: has {size:,} bytes, {length:,} were there when the run finished; put it back, or"
                " pass --restart"
            )


def _open_logs(
    journal: Journal, files: JobFiles, *, in_order: bool, say: Callable[[str], object]
) -> dict[Log, RecordLog]:
    """Open the record logs, as they were at the last commit."""
    if journal.get("state") == "finished":
        if not journal.open_lines() and journal.get("in_order") == in_order and files.output.exists():
            return {}
        journal.set(state="running")
    logs = {}
    finishing(files.output).unlink(missing_ok=True)
    for log, path in files.logs.items():
        finishing(path).unlink(missing_ok=True)
        length = journal.length(log)
        if path.exists() and not partial(path).exists():
            if path.stat().st_size != length:
                raise BadUsage(f"{path}: exists and is not of this job; move it away, or pass --restart")
            os.replace(path, partial(path))
        if length and not partial(path).exists():
            raise BadUsage(f"{partial(path)}: is gone; put it back, or pass --restart")
        logs[log] = _repaired(journal, log, RecordLog(partial(path), length=length), say)
        sync_folder(path.parent)
    return logs


def _repaired(journal: Journal, log: Log, file: RecordLog, say: Callable[[str], object]) -> RecordLog:
    size = file.size()
    if size < file.length:
        lost, end = journal.forget_beyond(log, size)
        while end and file.read(Span(end - 1, 1)) != b"\n":
            more, end = journal.forget_beyond(log, end - 1)
            lost += more
        say(f"{file.path} has lost its end: {lost:,} lines will be run again")
        file.commit(end)
    if file.size() > file.length:
        file.cut()
        file.sync()
    return file

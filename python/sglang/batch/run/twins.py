"""Twins: lines that ask for the same answer. The first of them is run, the others get its record.

Who is whose twin is a hash in the journal, so that it costs no memory, whatever the input's size. A record
is followed by those of its line's twins at once; twins that a kill has left without, or that were added to
the input later, get theirs when the job is opened the next time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sglang.batch.records import Usage, copied_record
from sglang.batch.run.committer import GROUP_BYTES, Finished, write_group
from sglang.batch.run.journal import Journal, Log, OpenLine
from sglang.batch.run.record_log import RecordLog
from sglang.batch.run.scan import InputLines

PAGE = 512
"""Records that one group takes at most."""


class Twins:
    """Makes records for those who wait for the record of another line.

    Args:
        journal: a connection for the thread that calls.
        inputs: where the custom_ids are read.
    """

    def __init__(self, journal: Journal, inputs: InputLines) -> None:
        self._journal = journal
        self._inputs = inputs

    def pages(self, group: Sequence[Finished]) -> Iterator[list[Finished]]:
        """Yield a group with records for the twins of its lines behind it, in pages of bounded size.

        The first page has the whole group.

        Raises:
            BadUsage: a twin's line has changed since the run began.
        """
        page, size = list(group), sum(len(finished.record) for finished in group)
        for copy in self._copies(group):
            page.append(copy)
            size += len(copy.record)
            if len(page) >= PAGE or size >= GROUP_BYTES:
                yield page
                page, size = [], 0
        if page:
            yield page

    def write_late(self, logs: Mapping[Log, RecordLog]) -> int:
        """Write the records of all who wait for a line that is done already; returns how many.

        Raises:
            BadUsage: a twin's line has changed since the run began.
            OSError, sqlite3.Error: the disk failed; what was written before is there.
        """
        written, after = 0, -1
        while late := self._journal.twins.late(after=after, limit=PAGE):
            copies = []
            for line, leader in late:
                record = logs[leader.log].read(leader.span)
                done = Finished(leader.position, record, leader.code, leader.usage)
                copies.append(self._copy(done, line))
            write_group(self._journal, logs, copies)
            written, after = written + len(copies), late[-1][0].position
        return written

    def _copies(self, group: Sequence[Finished]) -> Iterator[Finished]:
        by_position = {finished.position: finished for finished in group}
        for leader in self._journal.twins.leaders(list(by_position)):
            after = leader
            while lines := self._journal.twins.followers(leader, after=after, limit=PAGE):
                after = lines[-1].position
                for line in lines:
                    yield self._copy(by_position[leader], line)

    def _copy(self, leader: Finished, line: OpenLine) -> Finished:
        record = copied_record(
            leader.record, self._inputs.read(line), line=line.number, file=self._inputs.file(line)
        )
        return Finished(line.position, record, leader.code, Usage(), leader.position, leader.usage)

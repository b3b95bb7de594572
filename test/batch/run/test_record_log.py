"""What is committed is read back as it was; what is not does not exist."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.batch.run.record_log import RecordLog, Span

FIRST, LAST = b'{"id": 1, "text": "\xc3\xbc"}\n', b'{"id": 2}\n'


@pytest.mark.parametrize("kept", range(len(LAST) + 1))
def test_a_torn_tail_is_cut_at_every_byte_of_the_last_record(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(FIRST + LAST[:kept])
    log = RecordLog(path, length=len(FIRST))
    log.cut()
    assert log.read(Span(0, len(FIRST))) == FIRST
    assert log.append([LAST]) == [Span(len(FIRST), len(LAST))]
    log.close()
    assert path.read_bytes() == FIRST + LAST


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=4), st.booleans())),
    st.integers(1, 5),
)
def test_committed_records_stay_whatever_else_was_written(
    tmp_path_factory: pytest.TempPathFactory, groups: list[tuple[list[bytes], bool]], most: int
) -> None:
    class ShortWrites:
        """Writes `most` bytes at a time."""

        fdatasync = staticmethod(os.fdatasync)
        ftruncate = staticmethod(os.ftruncate)

        @staticmethod
        def pwrite(fd: int, data: bytes, offset: int) -> int:
            return os.pwrite(fd, data[:most], offset)

    log = RecordLog(tmp_path_factory.mktemp("log") / "log", length=0, disk=ShortWrites())
    committed: list[tuple[Span, bytes]] = []
    for records, commit in groups:
        spans = log.append(records)
        log.sync()
        if commit:
            log.commit(spans[-1].end)
            committed += zip(spans, records, strict=True)
    log.cut()
    assert log.size() == log.length == sum(len(record) for _, record in committed)
    assert [log.read(span) for span, _ in committed] == [record for _, record in committed]
    log.close()


def test_only_its_owner_may_read_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    RecordLog(path, length=0).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        RecordLog(tmp_path / "log", length=0)
    assert not (tmp_path / "elsewhere").exists()

"""Space of the store's disk that is kept for batches that end.

A batch that is cancelled, or whose window is over, gets a record for each line that was not run, and must end
within minutes on a disk that is full, too. So a file holds some space, whoever else fills the disk, and goes
when it is needed. Until the disk has room for it again, batches that run, and uploads, leave as much free.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sglang.batch.run.committer import CommitLimits

BASE_BYTES, LINE_BYTES = 8 << 20, 768
"""Bytes that a batch may need to end without running a line: once, and for each line."""

LARGEST_SHARE = 16
"""The reserve takes one of so many bytes of the disk at most."""


class Reserve:
    """The file, which is there while the service runs; may be used by several threads.

    Args:
        root: the store's folder.
        lines: of a batch at most.
    """

    def __init__(self, root: Path, lines: int) -> None:
        self._path = root / "reserve"
        self._bytes = min(BASE_BYTES + LINE_BYTES * lines, shutil.disk_usage(root).total // LARGEST_SHARE)
        self._lock = threading.Lock()

    def hold(self) -> None:
        """Take the space, if the disk has it."""
        with self._lock:
            if self._held() or self._free() < self._bytes:
                return
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._bytes)
            except OSError:  # somebody was faster
                self._path.unlink()
            finally:
                os.close(fd)

    def give(self) -> None:
        """Give the space to batches that end, if the disk has not enough for them."""
        with self._lock:
            if self._free() < self._bytes:
                self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Find out whether there is space for what is no end of a batch.

        Raises:
            OSError: none but what is kept for batches that end.
        """
        if not self._held() and self._free() < self._bytes:
            raise OSError(errno.ENOSPC, f"{self._bytes:,} bytes are kept for batches that end")

    def kept_by(self, commits: CommitLimits, ends: Callable[[], bool]) -> CommitLimits:
        """Let a batch's records wait while there is no space but what is kept, until it `ends` itself."""
        return replace(commits, claim=lambda: self.give() if ends() else self.check())

    def drop(self) -> None:
        """Give the space back for good."""
        self._path.unlink(missing_ok=True)

    def _held(self) -> bool:
        return self._path.exists() and self._path.stat().st_size >= self._bytes

    def _free(self) -> int:
        return shutil.disk_usage(self._path.parent).free

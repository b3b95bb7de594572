"""One run per output: a lock that no dead process leaves behind."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Locked(Exception):
    """Another process works on the output; the message names it."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which stays there afterwards: removing it would be a race.

    The lock is the kernel's (flock), so it ends with its process, however that ends.

    Raises:
        Locked: another process holds it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(holder(path) or "another process that has just started") from None
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()} since {started}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def holder(path: Path) -> str | None:
    """Name the process that holds the lock; None if no process does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return os.pread(fd, 1000, 0).decode(errors="replace").strip()
    finally:
        os.close(fd)

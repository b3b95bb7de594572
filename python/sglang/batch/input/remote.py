"""Addresses such as https://, s3://, gs:// and hf://, which fsspec finds and reads.

Credentials come from where each file system looks for them (environment, configuration files). Addresses are
shown without what may be one.
"""

from __future__ import annotations

import glob
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO
from urllib.parse import urlsplit

import fsspec
from fsspec.registry import known_implementations

from sglang.batch.usage import BadUsage

BUFFER = 1 << 20
"""Bytes that are asked of a remote file at a time."""


def find_remote(url: str, suffixes: tuple[str, ...]) -> list[str]:
    """Find the addresses that one means: itself, what it matches as a glob, or a folder's files.

    Args:
        suffixes: of the files that count in a folder.

    Returns:
        Addresses, by name; none where a glob or a folder has none.

    Raises:
        BadUsage: its file system is not known or not installed, or does not answer.
    """
    with _told(url):
        system, path = fsspec.core.url_to_fs(url)
        if _is_http(url):  # has neither folders nor globs, and ? begins a query
            return [url]
        if glob.has_magic(path):
            found = system.glob(path)
        elif system.isdir(path):
            files = [entry["name"] for entry in system.ls(path, detail=True) if entry["type"] == "file"]
            found = [name for name in files if name.endswith(suffixes)]
        else:
            return [url]
        return [system.unstrip_protocol(name) for name in sorted(found)]


def open_remote(url: str) -> IO[bytes]:
    """Open an address for reading; it can seek if its file system can.

    Raises:
        BadUsage: it cannot be read; raised while it is read, too.
    """
    with _told(url):
        system, path = fsspec.core.url_to_fs(url)
        # Many HTTP servers give no parts of a file: a stream works with all.
        file = system.open(path, "rb", **({"block_size": 0} if _is_http(url) else {}))
    return io.BufferedReader(_RemoteFile(url, file), BUFFER)


def shown(url: str) -> str:
    """Name an address without user, password and query, which may hold secrets.

    >>> shown("https://me:secret@example.org/a.jsonl?token=1")
    'https://example.org/a.jsonl'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_http(url: str) -> bool:
    return urlsplit(url).scheme in ("http", "https")


class _RemoteFile(io.RawIOBase):
    """A file of fsspec whose errors are told as ours."""

    def __init__(self, url: str, file: IO[bytes]) -> None:
        self._url = url
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with _told(self._url):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seekable(self) -> bool:
        return not _is_http(self._url) and self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn whatever a file system raises (each has errors of its own) into bad usage."""
    name = f"--input {shown(url)}"
    try:
        yield
    except BadUsage:
        raise
    except FileNotFoundError as error:
        raise BadUsage(f"{name}: does not exist, or must not be read") from error
    except ImportError as error:
        package = _package(urlsplit(url).scheme)
        raise BadUsage(f"{name}: needs the package {package}; pip install {package}") from error
    except Exception as error:
        problem = re.sub(r"\?[^\s'\")]*", "?...", str(error)) or type(error).__name__
        raise BadUsage(f"{name}: cannot be read ({problem})") from error


def _package(scheme: str) -> str:
    """Name the package that a file system is in."""
    known = known_implementations.get(scheme, {}).get("class", scheme)
    package = str(known).partition(".")[0]
    return "aiohttp" if package == "fsspec" else package

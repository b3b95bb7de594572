"""Who may call: API keys, of which the service knows hashes only."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sglang.batch.usage import BadUsage

NOBODY = ""
"""The owner of everything where there are no keys."""


class Keys:
    """The keys that are known.

    Args:
        names: their names by their SHA-256, in hexadecimal digits; None where anybody may call.
        path: the file that they are from.
    """

    def __init__(self, names: Mapping[str, str] | None, path: Path | None = None) -> None:
        self._names = names
        self._path = path
        self._seen = _stamp(path)

    def refresh(self) -> str | None:
        """Read the file again if it has changed; one that cannot be used leaves the keys as they are.

        Returns:
            What is to be said of it; None if it has not changed.
        """
        now = _stamp(self._path)
        if self._path is None or now == self._seen:
            return None
        self._seen = now
        try:
            self._names = _read(self._path)
        except BadUsage as error:
            return f"{error}; the keys stay as they were"
        return f"--api-keys {self._path}: read again, {len(self._names)} keys"

    @property
    def required(self) -> bool:
        """Whether a caller needs a key."""
        return self._names is not None

    def owner(self, authorization: str | None) -> str | None:
        """Tell whose things a caller sees; None if the key is missing or unknown.

        A key's owner is its hash: its name may change, and another key with the same name sees nothing of it.

        Args:
            authorization: the header: `Bearer KEY`, or a browser's `Basic ...` with the key as the password.
        """
        if self._names is None:
            return NOBODY
        digest = hashlib.sha256(_key(authorization or "").encode()).hexdigest()
        return digest if digest in self._names else None


def _key(authorization: str) -> str:
    """Read the key out of a header; empty if there is none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "basic":
        with suppress(ValueError):
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
    return value.strip() if scheme.lower() == "bearer" else ""


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    """What changes with a file; None of one that is not there."""
    if path is not None:
        with suppress(OSError):
            found = path.stat()
            return found.st_ino, found.st_mtime_ns, found.st_size
    return None


def read_keys(path: Path | None) -> Keys:
    """Read the file of `--api-keys`: lines of a key's SHA-256 and a name; # begins a comment.

    Raises:
        BadUsage: it cannot be read, has no keys, or something else than hashes.
    """
    return Keys(None if path is None else _read(path), path)


def _read(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadUsage(f"--api-keys {path}: cannot be read ({error})") from error
    names = {}
    for number, line in enumerate(lines, start=1):
        digest, _, name = line.partition("#")[0].strip().partition(" ")
        if not digest:
            continue
        if len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef"):
            # What stands there may be a key: it is not repeated.
            raise BadUsage(
                f"--api-keys {path}: line {number} must begin with the SHA-256 of a key, as from"
                " `printf %s KEY | sha256sum`"
            )
        names[digest.lower()] = name.strip()
    if not names:
        raise BadUsage(f"--api-keys {path}: has no keys")
    return names

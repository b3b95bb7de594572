"""Who may call: API keys, of which the service knows hashes only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from sglang.batch.usage import BadUsage

NOBODY = ""
"""The owner of everything where there are no keys."""


class Keys:
    """The keys that are known.

    Args:
        names: their names by their SHA-256, in hexadecimal digits; None where anybody may call.
    """

    def __init__(self, names: Mapping[str, str] | None) -> None:
        self._names = names

    @property
    def required(self) -> bool:
        """Whether a caller needs a key."""
        return self._names is not None

    def owner(self, authorization: str | None) -> str | None:
        """Tell whose things a caller sees; None if the key is missing or unknown.

        A key's owner is its hash: its name may change, and another key with the same name sees nothing of it.

        Args:
            authorization: the header, `Bearer KEY`.
        """
        if self._names is None:
            return NOBODY
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        return digest if scheme.lower() == "bearer" and digest in self._names else None


def read_keys(path: Path | None) -> Keys:
    """Read the file of `--api-keys`: lines of a key's SHA-256 and a name; # begins a comment.

    Raises:
        BadUsage: it cannot be read, has no keys, or something else than hashes.
    """
    if path is None:
        return Keys(None)
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
    return Keys(names)

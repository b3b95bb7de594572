"""Commands that cannot run as given, and what every command checks before it reads or loads anything."""

from __future__ import annotations

from pathlib import Path

BAD_USAGE = 2
"""Exit code of a command that cannot run as given, as argparse has it."""


class BadUsage(Exception):
    """The command cannot run as given; the message names the flag and the remedy. Exit code 2."""


def check_folder(flag: str, path: Path | None) -> None:
    """Check that the folder of a file to be written exists; without a file there is nothing to check.

    Raises:
        BadUsage: it does not.
    """
    if path is not None and not path.parent.is_dir():
        raise BadUsage(f"{flag} {path}: folder {path.parent} does not exist; create it first")

"""Commands that cannot run as given, and what every command checks before it reads or loads anything."""

from __future__ import annotations

from pathlib import Path

BAD_USAGE = 2
"""Exit code of a command that cannot run as given, as argparse has it."""


class BadUsage(Exception):
    """The command cannot run as given; the message names the flag and the remedy. Exit code 2."""


def check_input(path: Path) -> None:
    """Check that `--input` is a file that can be read.

    Raises:
        BadUsage: it is a folder, or cannot be opened.
    """
    if path.is_dir():
        raise BadUsage(f"--input {path}: is a folder; name a .jsonl file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise BadUsage(f"--input {path}: cannot be read ({error.strerror})") from error


def check_folder(flag: str, path: Path | None) -> None:
    """Check that the folder of a file to be written exists; without a file there is nothing to check.

    Raises:
        BadUsage: it does not.
    """
    if path is not None and not path.parent.is_dir():
        raise BadUsage(f"{flag} {path}: folder {path.parent} does not exist; create it first")

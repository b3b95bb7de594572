"""Which code a figure was measured with."""

from __future__ import annotations

import subprocess
from pathlib import Path

DIRTY = "-dirty"
"""Ends the name of code that is nowhere to be found again."""

_CHECKOUT = Path(__file__).parent.parent


def commit() -> str:
    """Short id of the checkout's commit, `DIRTY` behind it if tracked files other than results differ.

    Returns:
        "" outside of a checkout.
    """
    found = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmark/results")
    return found + DIRTY if changed else found


def identifies(code: str) -> bool:
    """Whether equal names from `commit` mean equal code."""
    return not code.endswith(DIRTY)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_CHECKOUT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

"""One line of what `sglang-batch doctor` has found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what is there, and what to do about it.

    Attributes:
        section: the heading that it stands under.
        value: what is there, in words.
        remedy: one line, where something is missing; "" where all is well.
    """

    section: str
    name: str
    value: str
    remedy: str = ""

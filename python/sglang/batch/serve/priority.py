"""How urgent a batch is beside others, as its metadata says."""

from __future__ import annotations

import re
from collections.abc import Mapping

WEIGHTS = {"low": 1, "normal": 4, "high": 16}

DEFAULT = "normal"


def weight(metadata: Mapping[str, str] | None) -> float:
    """Read a batch's weight from `metadata.priority`: of what places keys and batches share.

    Raises:
        ValueError: it is none of the words and no number from 1 to 100.

    >>> weight({"priority": "high"}), weight({"priority": "7"}), weight(None)
    (16.0, 7.0, 4.0)
    """
    priority = (metadata or {}).get("priority", DEFAULT)
    if priority in WEIGHTS:
        return float(WEIGHTS[priority])
    if re.fullmatch("[0-9]{1,3}", priority) and 1 <= int(priority) <= 100:
        return float(priority)
    raise ValueError(f"metadata.priority: must be {', '.join(WEIGHTS)} or a number from 1 to 100")

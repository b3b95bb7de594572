"""What every step did, as columns that grow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS = (
    "seconds",
    "prefill_tokens",
    "decode_rows",
    "kv_tokens",
    "prefill_pairs",
    "finished_prefills",
    "requests",
)


class StepLog:
    """One row per forward pass; columns are named as in `core.step_time.StepWork`.

    `seconds` is modelled time, `requests` the rows of the batch.
    """

    def __init__(self) -> None:
        self._rows = np.zeros((1024, len(COLUMNS)))
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, row: Mapping[str, float]) -> None:
        if self._length == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[self._length] = [row.get(name, 0.0) for name in COLUMNS]
        self._length += 1

    def __getitem__(self, column: str) -> NDArray[np.float64]:
        return self._rows[: self._length, COLUMNS.index(column)]

    def totals(self) -> dict[str, Any]:
        """Number of steps and the sum of every column."""
        sums = self._rows[: self._length].sum(axis=0)
        return {"steps": self._length, **dict(zip(COLUMNS, sums.tolist(), strict=True))}

"""Which requests run and how much each has generated, read off the columns of upstream's batch.

A thousand request objects lie scattered in memory, and asking each of them takes longer than all else that a
step needs to know of who runs. The batch that decodes has their lengths as one array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sglang.srt.blend.runtime.request import Batch, Request

Ints = NDArray[np.int64]

_NO_ROW = -1


@njit(cache=True)
def _slot_at(row, slot_of_row, row_of):  # type: ignore[no-untyped-def]
    """The slot whose request is in one of upstream's rows, -1 if none of ours is."""
    if row < 0 or row >= len(slot_of_row):
        return -1
    slot = slot_of_row[row]
    return slot if slot < len(row_of) and row_of[slot] == row else -1


@njit(cache=True)
def _read(rows, lengths, slot_of_row, row_of, prompts, more, output):  # type: ignore[no-untyped-def]
    """Note the output of the requests in these rows, (n,): what is behind their prompts, and `more`."""
    for i in range(len(rows)):
        slot = _slot_at(rows[i], slot_of_row, row_of)
        if slot >= 0:
            output[slot] = lengths[i] - prompts[slot] + more


@njit(cache=True)
def _followed(slots, ended, begun):  # type: ignore[no-untyped-def]
    """Slots, (n,), without those that have ended, and then those that have begun."""
    followed, n = np.empty(len(slots) + len(begun), np.int64), 0
    for slot in slots:
        followed[n] = slot
        n += 1
        for other in ended:
            if other == slot:
                n -= 1
    followed[n : n + len(begun)] = begun
    return followed[: n + len(begun)]


class OutputCounts:
    """Slots of the requests that run, in order of admission, and output tokens by slot.

    Args:
        running: the request that runs in a slot; None if none does.
    """

    def __init__(self, running: Callable[[int], Request | None]) -> None:
        self._running = running
        self._slots = np.zeros(0, np.int64)  # in order of admission, when last asked for
        self._begun: list[int] = []  # since then
        self._ended: list[int] = []  # of `_slots`
        self._output = np.zeros(0, np.int64)  # by slot, when last counted
        self._row = np.zeros(0, np.int64)  # by slot: where upstream has the request, or had it last
        self._slot_of_row = np.zeros(1, np.int64)
        self._rowless: list[int] = []  # slots of those that began since the last count

    def begins(self, slot: int, output: int) -> None:
        """A request starts running with so many output tokens."""
        missing = slot + 1 - len(self._output)
        if missing > 0:
            missing = max(missing, len(self._output))
            self._output = np.concatenate([self._output, np.zeros(missing, np.int64)])
            self._row = np.concatenate([self._row, np.full(missing, _NO_ROW)])
        self._output[slot] = output
        self._rowless.append(slot)
        self._begun.append(slot)

    def ends(self, slot: int) -> None:
        """A request does not run any more."""
        if slot in self._rowless:
            self._rowless.remove(slot)
        if slot in self._begun:
            self._begun.remove(slot)
        else:
            self._ended.append(slot)

    def slots(self) -> Ints:
        """Of the requests that run, (n,), in order of admission."""
        if self._ended or self._begun:
            ended, begun = np.array(self._ended, np.int64), np.array(self._begun, np.int64)
            self._slots = _followed(self._slots, ended, begun)
            self._ended.clear()
            self._begun.clear()
        return self._slots

    def of(self, slots: Ints) -> Ints:
        """Output tokens of running requests, (n,), when they were last counted."""
        return self._output[slots]

    def count(self, batch: Batch, prompts: Ints) -> bool:
        """Read what a batch's requests have; False where its columns do not tell.

        Their rows are ahead of their output by as many tokens as one of them tells that goes on: whether the
        result of the last step is there depends on upstream's overlap. Those that were prefilled in it may
        count a token too early.

        Args:
            prompts: prompt tokens by slot.
        """
        lengths, rows = batch.seq_lens_cpu, getattr(batch, "req_pool_indices_cpu", None)
        if lengths is None or rows is None or not len(batch.reqs):  # upstream empties no columns
            return False
        tokens, places = _int64(lengths), _int64(rows)
        self._rowless = [slot for slot in self._rowless if not self._note_row(slot)]
        for i, req in enumerate(batch.reqs):
            slot = _slot_at(places.item(i), self._slot_of_row, self._row)
            if slot >= 0 and not req.finished():
                more = len(req.output_ids) - (tokens.item(i) - prompts.item(slot))
                _read(places, tokens, self._slot_of_row, self._row, prompts, more, self._output)
                return True
        return False

    def _note_row(self, slot: int) -> bool:
        """Note in which of upstream's rows a request is; False if it has none yet."""
        request = self._running(slot)
        if request is None:
            return True
        row = request.kv.req_pool_idx
        if row is None:
            return False
        missing = row + 1 - len(self._slot_of_row)
        if missing > 0:
            more = np.zeros(max(missing, len(self._slot_of_row)), np.int64)
            self._slot_of_row = np.concatenate([self._slot_of_row, more])
        self._slot_of_row[row], self._row[slot] = slot, row
        return True


def _int64(column: Any) -> Ints:
    return np.asarray(column.numpy(), np.int64)

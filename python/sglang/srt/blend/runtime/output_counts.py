"""How much running requests have generated, read off the columns of upstream's batch.

A thousand request objects lie scattered in memory, and asking each of them takes longer than all else that a
step needs to know of who runs. The batch that decodes has their lengths as one array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.runtime.request import Batch, Request

Ints = NDArray[np.int64]

_NO_ROW = -1


class OutputCounts:
    """Output tokens by slot, of requests that run.

    Args:
        running: the request that runs in a slot; None if none does.
    """

    def __init__(self, running: Callable[[int], Request | None]) -> None:
        self._running = running
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
        self._rowless = [slot for slot in self._rowless if not self._note_row(slot)]
        slots = self._slot_of_row.take(rows.numpy(), mode="clip")
        mine = slots < len(self._row)
        mine[mine] = self._row[slots[mine]] == rows.numpy()[mine]
        slots, output = slots[mine], lengths.numpy()[mine]
        output = output - prompts[slots]
        going = ((i, req) for i, req in enumerate(_those(batch.reqs, mine)) if not req.finished())
        i, one = next(going, (0, None))
        if one is not None:
            self._output[slots] = output + (len(one.output_ids) - output[i])
        return one is not None

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


def _those(requests: Iterable[Request], which: NDArray[np.bool_]) -> Iterable[Request]:
    return (request for request, wanted in zip(requests, which, strict=True) if wanted)

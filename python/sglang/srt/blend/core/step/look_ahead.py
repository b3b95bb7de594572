"""The room beside everybody who runs, as a step finds it (paper 5.3, ahead of time)."""

from __future__ import annotations

import numpy as np

from sglang.srt.blend.core.step.forecast import PARTS
from sglang.srt.blend.core.step.ledger import Ledger, Progress
from sglang.srt.blend.core.step.room import Holders, Room

LATE_STEPS = 2
"""Steps by which the scheduler sees an ended request later than its output length tells."""

DEVIATIONS = 2.5
"""Standard deviations of what running requests will hold that stay free, for retractions compute twice."""

FEW_DEVIATIONS = 0.75
"""The same where few run: it would be a large share of the cache, and each row that is missing one of few."""

FEW = 16
"""Requests that run, up to which one more row is worth a prefill pass of its own as soon as its prefix is
there; among more of them somebody leaves soon, and one pass then serves several."""


def look_ahead(
    ledger: Ledger, progress: Progress, *, used: int, page_size: int, paced: bool, sure: bool
) -> Room:
    """Forecast what running requests will hold, by estimates; who fits after all is preemptible no more.

    Args:
        progress: of all that hold KV.
        used: KV tokens that they hold now, those ahead included, shared prefixes counted once.
        page_size: tokens of a KV page.
        paced: whether the compute side has a quota, for whose pace it needs room; else it needs its share.
        sure: whether nothing stays free for answers that turn out longer.
    """
    table, scanner, slots, work = ledger.table, ledger.scanner, progress.slots, ledger.work_left(progress)
    if paced:
        reserve = work.compute_reserve(ledger.kv_capacity, scanner.used.compute)
    else:
        reserve = scanner.compute_share()
    deviations = DEVIATIONS if len(slots) > FEW else FEW_DEVIATIONS
    late, alone = ledger.speculation.tokens(LATE_STEPS), progress.context - table.shared[slots]
    ends = np.maximum(table.ends(slots, PARTS), 1)
    sides = table.memory_side[slots], table.preemptible[slots]
    room = Room(
        Holders(slots, progress.remaining + late, ends + late, alone, *sides),
        used=used,
        ahead=ledger.speculation.ahead,
        deviations=0.0 if sure else deviations,
        reserve=int(reserve),
        compute_need=scanner.compute_need,
        outlasting=work.full_steps(ledger.kv_capacity) * work.accept_length,
        capacity=ledger.kv_capacity,
        page_size=page_size,
    )
    table.preemptible[room.kept] = False
    return room

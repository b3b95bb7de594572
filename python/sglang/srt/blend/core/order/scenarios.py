"""What answers of unknown lengths may turn out to be, for a judge of orders (beyond the paper).

Taken for as long as is expected of them, answers that nobody can tell apart are all of one length. Then it
does not matter which of them begins last. In truth one of many is long, and if it begins last the others have
ended long before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.pool.request_table import RequestTable

Ints = NDArray[np.int64]

_SCENARIOS = 4


def scenarios(table: RequestTable, slots: Ints) -> Ints:
    """Output tokens of requests in each of some scenarios, int64 (n, scenarios).

    A request meets each part of the lengths that it may have once, in an order of its own, so all scenarios
    together are what is expected, and each alone is as mixed as the answers will be. Equal calls give equal
    scenarios.

    Args:
        slots: (n,) requests that wait, or run.
    """
    ends = np.maximum(table.ends(slots, _SCENARIOS), 1)
    return np.asarray(np.random.default_rng(0).permuted(ends, axis=1))

"""The planner stores token ids as int32; upstream's are 64 bits wide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

_LARGEST = np.int64(2**31 - 1)
_MARK = np.int64(2**30)


def fold(token_ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int32]:
    """The ids folded to 31 bits: equal ids stay equal, ids below 2**31 stay as they are.

    Upstream pads images with hash-derived ids of up to 62 bits. Folded ones have bit 30 set, which no
    vocabulary reaches; two different images fold to the same run of ids with probability 2**-30 per id,
    and then only the plan is a little off, never the KV cache, which upstream keys by the full ids.

    Args:
        token_ids: (n,) ids, as an ``array('q')``, an int64 array or a list.

    Returns:
        int32 (n,).

    >>> fold([7, 2**31 - 1, 2**40 + 7]).tolist()
    [7, 2147483647, 1073742087]
    """
    return np.asarray(_fold(np.asarray(token_ids, dtype=np.int64)))


@njit(cache=True)
def _fold(ids):  # type: ignore[no-untyped-def]
    folded = np.empty(len(ids), np.int32)
    for i in range(len(ids)):
        token = ids[i]
        if token > _LARGEST:
            token = ((token ^ (token >> 32)) & (_MARK - 1)) | _MARK
        folded[i] = token
    return folded

"""What one key may have and use: open batches, bytes in the store, tokens a day."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from sglang.batch.run.tally import Tally
from sglang.batch.serve.store import BatchRow, Store

DAY = 86_400
"""Seconds of a day, which begins at midnight UTC."""

SOON = 60
"""Seconds after which it is worth asking again when a batch has to end first."""


@dataclass(frozen=True)
class Quotas:
    """Limits of each key.

    Attributes:
        batches: that may be open at a time.
        stored_bytes: of uploads and results that may be in the store.
        daily_tokens: in and out, of batches that end within a day and of those that run.
    """

    batches: float = math.inf
    stored_bytes: float = math.inf
    daily_tokens: float = math.inf


class OverQuota(Exception):
    """More than a key may have.

    Attributes:
        retry_after: seconds until it is worth asking again; None where somebody must delete something first.
    """

    def __init__(self, message: str, retry_after: int | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def check_upload(quotas: Quotas, store: Store, owner: str) -> int | None:
    """Tell how many more bytes a key may store; None for any number.

    Raises:
        OverQuota: none.
    """
    if math.isinf(quotas.stored_bytes):
        return None
    left = int(quotas.stored_bytes) - store.sums.stored_bytes(owner)
    if left <= 0:
        raise OverQuota(f"this key stores {int(quotas.stored_bytes):,} bytes already; delete files", None)
    return left


def check_batch(quotas: Quotas, store: Store, owner: str, live: dict[str, Tally], online: int = 0) -> None:
    """Check that a key may begin a batch.

    Args:
        live: what is done of the batches that run, by id.
        online: tokens of the key's online requests of this day.

    Raises:
        OverQuota: it may not now.
    """
    running = [batch for batch in store.open_batches() if batch.owner == owner]
    if len(running) >= quotas.batches:
        raise OverQuota(f"this key has {len(running)} open batches, as many as it may have", SOON)
    check_tokens(quotas, store, owner, live, online)


def check_tokens(quotas: Quotas, store: Store, owner: str, live: dict[str, Tally], online: int) -> None:
    """Check that a key has tokens left of this day; arguments as in `check_batch`.

    Raises:
        OverQuota: it has none.
    """
    if math.isinf(quotas.daily_tokens):
        return
    now = int(time.time())
    running = [batch for batch in store.open_batches() if batch.owner == owner]
    used = store.sums.tokens_since(owner, now // DAY * DAY) + sum(_tokens(batch, live) for batch in running)
    used += online
    if used >= quotas.daily_tokens:
        raise OverQuota(
            f"this key has used {used:,} of the {int(quotas.daily_tokens):,} tokens of a day", DAY - now % DAY
        )


def _tokens(batch: BatchRow, live: dict[str, Tally]) -> int:
    tally = live.get(batch.id)
    return 0 if tally is None else tally.tokens

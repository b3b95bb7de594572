"""What routes, metrics and the page look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sglang.batch.serve.batches import Batches
from sglang.batch.serve.keys import Keys
from sglang.batch.serve.online import Online
from sglang.batch.serve.quotas import Quotas
from sglang.batch.serve.reserve import Reserve
from sglang.batch.serve.speeds import Speeds, Uses
from sglang.batch.serve.store import Store


@dataclass(frozen=True)
class Service:
    """The service as it runs.

    Attributes:
        reserve: space that uploads must leave.
        models: by which names requests call the models.
        started: seconds since 1970.
        file_bytes: of an upload at most.
        quotas: of each key.
        engine_up: tells whether the engine is up.
        speeds: tokens per second over time.
        uses: shares of the engine's hardware over time.
        online: passes requests of online users through; None if it does not.
    """

    store: Store
    reserve: Reserve
    batches: Batches
    keys: Keys
    models: tuple[str, ...]
    started: int
    file_bytes: int
    quotas: Quotas
    engine_up: Callable[[], bool]
    speeds: Speeds
    uses: Uses = field(default_factory=Uses)
    online: Online | None = None

    def tokens_online(self, owner: str) -> int:
        """Count the tokens of an owner's online requests of this day."""
        return 0 if self.online is None else self.online.tokens_today(owner)

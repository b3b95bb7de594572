"""Which data-parallel replica gets a request: a pool by whole subtrees, later arrivals where their prefix is.

A pool is divided by `sharding`. Whoever comes later is one request, not a pool, so nothing is balanced
against it: it joins the replica that holds most of its prompt, unless that replica is so far ahead of the one
with least to do that computing the prefix again costs less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.order.sharding import Shards, shard

Ints = NDArray[np.int64]

_BLOCK = 32
"""Tokens by which prefixes are remembered: a shorter one is not worth a place in a queue."""

_REMEMBERED = 1 << 19
"""Blocks that are remembered, about 17 million tokens and 100 MB; the ones used longest ago are forgotten."""

_HEAD_START = 0.25
"""How far a replica may get ahead to keep a prefix together, as a share of what the least busy one has to do,
which is the time left to make the lead up."""


class Replicas:
    """What each of several equal replicas holds and has to do.

    Args:
        cost: of one replica.
        count: replicas, numbered from 0.

    Raises:
        ValueError: count is below 1.
    """

    def __init__(self, cost: CostModel, count: int) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self._cost = cost
        self._seconds = np.zeros(count)  # modelled, of all that each ever got
        self._given = np.zeros(count, np.int64)  # requests that each ever got
        self._open = np.zeros(count, np.int64)  # requests of these that have not ended
        self._holders: dict[
            int, int
        ] = {}  # by block and all before it: bits of the replicas, oldest use first

    @property
    def loads(self) -> NDArray[np.float64]:
        """Modelled seconds of what each replica still has to do, (replicas,): open requests at its mean."""
        return np.asarray(self._seconds / np.maximum(self._given, 1) * self._open)

    def deal(
        self,
        tokens: NDArray[np.int32],
        offsets: Ints,
        output: NDArray[np.integer],
        *,
        namespace: NDArray[np.integer] | None = None,
        among: Sequence[int] | None = None,
    ) -> tuple[Ints, Shards]:
        """Divide a pool: equal work, whole subtrees.

        Args: as of `shard`, and

            among: replicas that may get requests; all by default.

        Returns:
            (n,) the replica of each request; the division.
        """
        among = range(len(self._open)) if among is None else among
        shards = shard(tokens, offsets, output, self._cost, len(among), namespace=namespace)
        owner = np.zeros(len(offsets) - 1, np.int64)
        loads = self.loads
        free = sorted(among, key=lambda replica: float(loads[replica]))
        for part, replica in zip(sorted(shards.parts, key=lambda part: -part.work), free, strict=True):
            owner[part.requests] = replica
            self._give(replica, part.work, len(part.requests))
        for i, replica in enumerate(owner.tolist()):
            name = 0 if namespace is None else int(namespace[i])
            self._remember(replica, tokens[offsets[i] : offsets[i + 1]], name)
        return owner, shards

    def join(
        self,
        tokens: NDArray[np.int32],
        output: int,
        *,
        namespace: int = 0,
        among: Sequence[int] | None = None,
    ) -> int:
        """Choose the replica of one more request.

        Args:
            tokens: int32 (n,), its prompt.
            output: tokens of its answer, known or estimated.
            namespace: prompts of different namespaces share nothing.
            among: replicas that may get it; all by default.
        """
        among = range(len(self._open)) if among is None else among
        held, loads = self._held(tokens, namespace), self.loads
        alone = float(self._cost.comp(len(tokens), output) + self._cost.mem(len(tokens), output))
        seconds = alone - self._cost.prefix_comp(held)
        free = min(among, key=lambda replica: float(loads[replica]))
        home = min(among, key=lambda replica: (-int(held[replica]), float(loads[replica])))
        lead = loads[home] + seconds[home] - loads[free] - seconds[free]
        chosen = home if lead <= _HEAD_START * loads[free] else free
        self._give(chosen, float(seconds[chosen]), 1)
        self._remember(chosen, tokens, namespace)
        return chosen

    def took(self, replica: int, tokens: NDArray[np.int32], output: int, *, namespace: int = 0) -> None:
        """A replica got a request for which somebody else has chosen it."""
        self.join(tokens, output, namespace=namespace, among=(replica,))

    def has(self, replica: int, requests: int) -> None:
        """A replica says how many requests it has that have not ended, whoever sent them."""
        self._open[replica] = requests

    def _give(self, replica: int, seconds: float, requests: int) -> None:
        self._seconds[replica] += seconds
        self._given[replica] += requests
        self._open[replica] += requests

    def _remember(self, replica: int, tokens: NDArray[np.int32], namespace: int) -> None:
        holders = self._holders
        for block in _blocks(tokens, namespace):
            holders[block] = holders.pop(block, 0) | 1 << replica
        for block in list(_first(holders, len(holders) - _REMEMBERED)):
            del holders[block]

    def _held(self, tokens: NDArray[np.int32], namespace: int) -> Ints:
        """Tokens of a prompt's beginning that each replica has been given before, (replicas,)."""
        held = np.zeros(len(self._open), np.int64)
        who = (1 << len(held)) - 1
        for number, block in enumerate(_blocks(tokens, namespace), 1):
            who &= self._holders.get(block, 0)
            if not who:
                break
            held[[replica for replica in range(len(held)) if who >> replica & 1]] = number * _BLOCK
        return held


def _blocks(tokens: NDArray[np.int32], namespace: int) -> Iterator[int]:
    """Hashes of a prompt's whole blocks, each together with all tokens before it."""
    raw, size = tokens.tobytes(), _BLOCK * tokens.itemsize
    before = namespace
    for end in range(size, len(raw) + 1, size):
        before = hash((before, raw[end - size : end]))
        yield before


def _first(keys: dict[int, int], count: int) -> Iterator[int]:
    """Iterate over the first `count` keys; none if it is negative."""
    for key, _ in zip(keys, range(count), strict=False):
        yield key

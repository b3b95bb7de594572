"""How much KV the running requests leave to one more, now and until they end (paper 5.3, ahead of time)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.step.dual_scan import Side
from sglang.srt.blend.core.step.forecast import KVForecast

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Holders:
    """Requests that hold KV, as forecasts want them; arrays (n,).

    Attributes:
        slots: requests.
        remaining: output tokens until each is expected to give its KV back, 1 or more.
        ends: (n, parts) the same of its parts, see `KVForecast`.
        released: KV tokens that each alone holds now, those `ahead` left out.
        memory_side: whether each counts on the memory side.
        preemptible: whether each runs in KV that is promised to others.
    """

    slots: Ints
    remaining: Ints
    ends: Ints
    released: Ints
    memory_side: NDArray[np.bool_]
    preemptible: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Outlook:
    """Forecasts of everybody, and of the memory side alone."""

    everybody: KVForecast
    memory: KVForecast

    def add(self, side: Side, new_tokens: int, remaining: int) -> None:
        """A request of a side takes `new_tokens` of KV now and ends `remaining` output tokens later."""
        self.everybody.add(new_tokens, remaining)
        if side is Side.MEMORY:
            self.memory.add(new_tokens, remaining)

    def copy(self) -> Outlook:
        """An outlook that goes its own way from here."""
        return Outlook(self.everybody.copy(), self.memory.copy())


class Room:
    """The KV that is left in one step, for requests that stay to their end and for preemptible ones.

    Long answers that begin together grow together, past their side's share. So the memory side alone must
    stay within what the compute side leaves, now and when all who compute now have been followed by others.
    Not so a request that outlasts all other work: what it displaces can follow beside it, while the pool
    would have to wait for it alone if it started later.

    Args:
        holders: who runs. Preemptible ones count for nobody else; those that fit after all are kept.
        used: KV tokens held now, shared prefixes counted once.
        ahead: KV tokens that each request holds beyond those that it has generated; part of `used`.
        deviations: standard deviations of what they will hold that stay free.
        reserve: KV tokens that the memory side leaves to the compute side.
        compute_need: KV tokens that the compute side's next request comes to hold.
        outlasting: output tokens; an answer of that many or more outlasts all other work.
        capacity: KV tokens.
        page_size: tokens; each request may waste all but one of them.

    Attributes:
        kept: slots of preemptible requests for which there is room to their end now.
    """

    def __init__(
        self,
        holders: Holders,
        *,
        used: int,
        ahead: int,
        deviations: float,
        reserve: int,
        compute_need: int,
        outlasting: float,
        capacity: int,
        page_size: int,
    ) -> None:
        self._used, self._ahead, self._deviations, self._reserve = used, ahead, deviations, reserve
        self._outlasting, self._capacity, self._page_size = outlasting, capacity, page_size
        preemptible, memory_side = holders.preemptible, holders.memory_side
        everybody = KVForecast(used, holders.ends, holders.released + ahead, deviations)
        # With preemptible requests.
        self._crowded = Outlook(everybody, everybody.of_those(memory_side))
        # Without: they leave when others need their room. The same object while there are none.
        self._promised = self._crowded
        if preemptible.any():
            stay = ~preemptible
            self._promised = Outlook(everybody.of_those(stay), everybody.of_those(memory_side & stay))
        # A share that the compute side cannot use is none: nobody of it runs, and the next one of it has no
        # room beside the memory side as it is.
        if memory_side.all() and self._promised.memory.peak() + compute_need > capacity:
            self._reserve = 0
        self.kept: list[int] = []
        for i in np.flatnonzero(preemptible).tolist():
            held, left = int(holders.released[i]), int(holders.remaining[i])
            if self.fits(Side.MEMORY, held, left):
                self.kept.append(int(holders.slots[i]))
                self._promised.add(Side.MEMORY, held + ahead, left)

    def fits(self, side: Side, new_tokens: int, remaining: int) -> bool:
        """Whether KV use stays within bounds until a request ends that is added now.

        Args:
            new_tokens: KV tokens that it takes now, those ahead left out.
            remaining: output tokens until its end.
        """
        new_tokens += self._ahead
        for forecast, tokens in self._bounds(side, remaining):
            if forecast.peak_with(new_tokens, remaining) > tokens:
                return False
        return True

    def longest(self, new_tokens: int) -> int:
        """Output tokens that a memory-side request of `new_tokens` may have to fit; negative if none may."""
        new_tokens += self._ahead
        return min(forecast.longest(new_tokens, tokens) for forecast, tokens in self._bounds(Side.MEMORY, 0))

    def longest_visit(self, new_tokens: int) -> int:
        """Output tokens for which a preemptible request of `new_tokens` could stay beside everybody."""
        new_tokens, tokens = new_tokens + self._ahead, self._tokens(self._crowded)
        return min(
            self._crowded.everybody.longest(new_tokens, tokens),
            self._crowded.memory.longest(new_tokens, tokens - self._reserve),
        )

    @property
    def requests(self) -> int:
        """How many requests hold KV, preemptible ones included."""
        return len(self._crowded.everybody)

    def add(self, side: Side, new_tokens: int, remaining: int, *, preemptible: bool) -> None:
        """A request was admitted; arguments as of `fits`."""
        alone = self._crowded is self._promised
        if preemptible and alone:
            self._crowded = self._promised.copy()
        self._crowded.add(side, new_tokens + self._ahead, remaining)
        if not preemptible and not alone:
            self._promised.add(side, new_tokens + self._ahead, remaining)

    def _bounds(self, side: Side, remaining: int) -> list[tuple[KVForecast, int]]:
        """Forecasts that one more request of a side must keep within so many KV tokens."""
        tokens = self._tokens(self._promised)
        bounds = [(self._promised.everybody, tokens)]
        if side is Side.MEMORY and remaining < self._outlasting:
            bounds.append((self._promised.memory, tokens - self._reserve))
        return bounds

    def _tokens(self, outlook: Outlook) -> int:
        """KV tokens for those of the outlook and one more, less what partly filled pages waste."""
        return self._capacity - (self._page_size - 1) * (len(outlook.everybody) + 1)


def whole_pages(tokens: int, page_size: int) -> int:
    """KV tokens of the pages that so many tokens take.

    >>> whole_pages(17, page_size=16)
    32
    """
    return -(-tokens // page_size) * page_size


def both_end(prompt: int, other: int, *, page_size: int, capacity: int) -> bool:
    """Whether a prompt in chunks and one more request fit together, whatever the other still produces.

    The engine can retract everybody but the prompt and one more. If that one does not fit at its cap, the
    engine has to abort it.

    Args:
        prompt: tokens of the prompt that is computed in chunks.
        other: KV tokens of the other request at its cap.
        capacity: KV tokens.
    """
    return whole_pages(prompt + 1, page_size) + whole_pages(other, page_size) + page_size <= capacity

"""How full of what requests hold for themselves the KV cache is, measured."""

from __future__ import annotations

EXPECTED = 0.7
"""Share of the KV capacity that requests hold on average where it is what they wait for: they grow, so they
begin with less. Before anything is known."""

BUSY = 0.8
"""Share of the capacity in use from which on a step says something: a cache that fills up, or empties at a
pool's end, is not what others wait for."""

FILL_STEPS = 64
"""Steps over which the mean forgets."""


class Fill:
    """Share of the KV capacity that running requests hold beside the prefixes of others, a moving mean.

    So much of the KV that waits to be held gets done in a step. Where prefixes are long and read by few at a
    time it is far less than the capacity.

    Attributes:
        share: 0 to 1.
    """

    def __init__(self) -> None:
        self.share = EXPECTED

    def note(self, held_tokens: float, used_tokens: int, kv_capacity: int) -> None:
        """A step begins.

        Args:
            held_tokens: KV tokens of running requests without the prefixes that others of them hold.
            used_tokens: KV tokens in use, everything counted once.
        """
        if used_tokens >= BUSY * kv_capacity:
            self.share += (min(held_tokens / kv_capacity, 1.0) - self.share) / FILL_STEPS

"""What an engine may have died of, found by running it apart from everything else, in halves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

CRASHED = "engine_crashed"
"""Error code of a line of which the engine died when it ran alone."""


async def in_halves(items: list[T], run: Callable[[list[T]], Awaitable[list[T]]]) -> None:
    """Run items together, then in halves of those that are left each time that the engine dies.

    Args:
        run: runs a group and gives back what has no answer since the engine died; an item that was a group by
            itself comes back only if something else is why.

    >>> import asyncio
    >>> async def run(group):
    ...     print(group)
    ...     return group if "bad" in group and len(group) > 1 else []
    >>> asyncio.run(in_halves(["a", "b", "bad"], run))
    ['a', 'b', 'bad']
    ['a']
    ['b', 'bad']
    ['b']
    ['bad']
    """
    groups = [items]
    while groups:
        left = await run(groups.pop())
        half = len(left) // 2
        groups += [group for group in (left[half:], left[:half]) if group]

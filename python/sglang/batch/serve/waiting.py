"""The lines of a batch that wait for the engine, in the order of the file or in that of their prompts."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Mapping
from itertools import count
from typing import Any


def prompt_order(body: Mapping[str, Any]) -> tuple[str, ...]:
    """What a request is ordered by, so that those with a common beginning are next to each other.

    >>> prompt_order({"messages": [{"content": "Be brief."}, {"content": [{"text": "Why?"}]}]})
    ('Be brief.', 'Why?')
    """
    messages = body.get("messages", body.get("input"))
    if not isinstance(messages, list):
        return (_text(body.get("prompt", messages)),)
    return tuple(
        _text(part.get("text") if isinstance(part, dict) else part)
        for message in messages
        for part in _parts(message)
    )


def _parts(message: object) -> list[Any]:
    content = message.get("content") if isinstance(message, dict) else message
    return content if isinstance(content, list) else [content]


def _text(prompt: object) -> str:
    if isinstance(prompt, list) and all(isinstance(token, int) and 0 <= token < 0x110000 for token in prompt):
        return "".join(map(chr, prompt))
    return prompt if isinstance(prompt, str) else ""


class Waiting:
    """Lines that wait; each waits for its turn, which tells whether it is hurried."""

    def __init__(self) -> None:
        self._came: deque[asyncio.Future[bool]] = deque()
        self._ordered: list[tuple[tuple[str, ...], int, asyncio.Future[bool]]] = []
        self._number = count()
        self._closed = False

    def add(self, order: tuple[str, ...]) -> asyncio.Future[bool]:
        """Let a line wait.

        Args:
            order: see `prompt_order`.

        Returns:
            Its turn; cancelled when no line is to wait any more.
        """
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self._closed:
            turn.cancel()
            return turn
        self._came.append(turn)
        heapq.heappush(self._ordered, (order, next(self._number), turn))
        return turn

    def close(self) -> None:
        """Send those that wait away, and whoever comes."""
        self._closed = True
        for turn in self._came:
            turn.cancel()

    def __bool__(self) -> bool:
        # Those that had their turn, or have given up, are dropped when they come to the front.
        while self._came and self._came[0].done():
            self._came.popleft()
        if not self._came:
            self._ordered.clear()
        return bool(self._came)

    def give(self, *, hurried: bool) -> None:
        """Let one of them have its turn: the next of the file, or of the prompts' order if it is hurried."""
        turn = self._next_of_prompts() if hurried else self._came.popleft()
        turn.set_result(hurried)

    def _next_of_prompts(self) -> asyncio.Future[bool]:
        while True:
            turn = heapq.heappop(self._ordered)[2]
            if not turn.done():
                return turn

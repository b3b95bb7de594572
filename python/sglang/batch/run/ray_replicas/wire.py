"""What driver and actors send each other: msgpack, many messages in one call.

A call costs Ray more than a request costs the driver, so what comes up in one turn of the event loop goes
together. Frames stay below the size from which Ray would take them through its object store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from sglang.batch.run.engine.channel import Raised, Reply, Submit

FRAME_BYTES = 90_000
"""Bytes of a frame from which on the next message begins another; Ray passes 100 KiB without the store."""


class Lost(msgspec.Struct, tag=True):
    """From an actor: its engine died with this request.

    Attributes:
        why: how it died.
        suspect: whether it may have died of this request.
    """

    id: str
    why: str
    suspect: bool


Back = Reply | Raised | Lost

_ENCODER = msgspec.msgpack.Encoder()
_REQUESTS: msgspec.msgpack.Decoder[list[Submit]] = msgspec.msgpack.Decoder(list[Submit])
_BACK: msgspec.msgpack.Decoder[list[Back]] = msgspec.msgpack.Decoder(list[Back])


def frames(messages: Iterable[Submit | Back]) -> Iterator[bytes]:
    """Write messages, in order, as frames that decode by themselves.

    >>> [len(read_requests(frame)) for frame in frames([Submit("1", 1, "a", "/", b"x" * 50_000)] * 3)]
    [2, 1]
    """
    parts: list[msgspec.Raw] = []
    size = 0
    for message in messages:
        part = _ENCODER.encode(message)
        parts.append(msgspec.Raw(part))
        size += len(part)
        if size >= FRAME_BYTES:
            yield _ENCODER.encode(parts)
            parts, size = [], 0
    if parts:
        yield _ENCODER.encode(parts)


def read_requests(frame: bytes) -> list[Submit]:
    """Read a frame of the driver's."""
    return _REQUESTS.decode(frame)


def read_back(frame: bytes) -> list[Back]:
    """Read a frame of an actor's."""
    return _BACK.decode(frame)

"""What runner and worker say to each other: msgpack over a socket, each message behind its length.

Bodies and answers cross as the bytes they are in the files; nobody parses them on the way.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any, Literal

import msgspec

from sglang.batch.records import Answer

_LENGTH = struct.Struct("<Q")

Method = Literal["close", "settle", "open", "state", "progress"]


class Launch(msgspec.Struct, tag=True):
    """To the worker, first: start an engine with these flags of the server."""

    flags: list[str]


class Launched(msgspec.Struct, tag=True):
    """From the worker: the engine is up.

    Attributes:
        no_barrier: what the engine lacks for a barrier; None if it lacks nothing.
    """

    no_barrier: str | None = None


class NotLaunched(msgspec.Struct, tag=True):
    """From the worker, which ends then: the engine did not start."""

    reason: str


class Submit(msgspec.Struct, tag=True):
    """To the worker: run a request; `body` is JSON.

    Attributes:
        stream: its reply is wanted in parts.
    """

    id: str
    line: int
    custom_id: str
    url: str
    body: bytes
    stream: bool = False


class GiveUp(msgspec.Struct, tag=True):
    """To the worker: nobody waits for a request any more."""

    id: str


class Part(msgspec.Struct, tag=True):
    """From the worker: a part of a request's reply, before `Reply` ends it."""

    id: str
    data: bytes


class Reply(msgspec.Struct, tag=True):
    """From the worker: what a request's handler replied."""

    id: str
    answer: Answer


class Raised(msgspec.Struct, tag=True):
    """From the worker: a request's handler raised, or what a call asked for did."""

    id: str
    error: str


class Call(msgspec.Struct, tag=True):
    """To the worker: do something with its barrier, or tell something of its engine."""

    id: str
    method: Method


class Result(msgspec.Struct, tag=True):
    """From the worker: a call is done; `value` is JSON."""

    id: str
    value: bytes


Message = Launch | Launched | NotLaunched | Submit | GiveUp | Part | Reply | Raised | Call | Result

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class Channel:
    """One end of a connected socket, in the event loop that is running."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def on(cls, connected: socket.socket) -> Channel:
        """Take over a socket."""
        return cls(*await asyncio.open_connection(sock=connected))

    async def send(self, message: Message) -> None:
        """Send a message; waits while much that was sent before is on its way.

        Raises:
            ConnectionError: the other side is gone.
        """
        frame = _ENCODER.encode(message)
        self._writer.writelines((_LENGTH.pack(len(frame)), frame))
        await self._writer.drain()

    async def receive(self) -> Message | None:
        """Receive a message; None when the other side has closed its end, or died."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            return _DECODER.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def close(self) -> None:
        """Close this end."""
        self._writer.close()


def send_now(connected: socket.socket, message: Message) -> None:
    """Send a message before there is an event loop."""
    frame = _ENCODER.encode(message)
    connected.sendall(_LENGTH.pack(len(frame)) + frame)


def receive_now(connected: socket.socket) -> Message | None:
    """Receive a message before there is an event loop; None when the other side is gone."""
    head = connected.recv(_LENGTH.size, socket.MSG_WAITALL)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    return _DECODER.decode(connected.recv(length, socket.MSG_WAITALL))


def encode_json(value: Any) -> bytes:
    """Write JSON of plain values, integers of any size and NumPy's numbers among them."""
    try:
        return msgspec.json.encode(value, enc_hook=lambda number: number.item())
    except OverflowError:
        return json.dumps(value).encode()

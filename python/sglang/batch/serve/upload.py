"""A file is uploaded: a multipart form straight from the connection to the disk, with a bound on its size."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

FIELD_BYTES = 64 << 10
"""Bytes of the form's fields and headers together at most."""


class BadUpload(Exception):
    """The form is not what the API asks for; says what is wrong."""


class TooLarge(Exception):
    """The file is larger than it may be."""


@dataclass
class Upload:
    """A form.

    Attributes:
        fields: its values by name, the file apart.
        filename: None until there is a file.
    """

    path: Path
    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


async def receive(
    content_type: str | None, chunks: AsyncIterator[bytes], folder: Path, *, limit: int
) -> Upload:
    """Receive a form; its file is on the disk then, in `folder`, and the caller's to move or remove.

    Args:
        limit: bytes of the file at most.

    Raises:
        BadUpload, TooLarge: nothing is left of it.
        OSError: the disk failed; nothing is left of it.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise BadUpload("the body must be multipart/form-data")
    upload = Upload(folder / secrets.token_hex(16))
    fd = os.open(upload.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            form = _Form(upload, file, limit)
            parser = MultipartParser(options[b"boundary"], form.callbacks())
            async for chunk in chunks:
                parser.write(chunk)
            parser.finalize()
            if not form.ended or upload.filename is None:
                raise BadUpload("file: is missing" if form.ended else "the form is cut off")
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
    except BaseException as error:
        upload.path.unlink(missing_ok=True)
        if isinstance(error, FormParserError):
            raise BadUpload("the body is no multipart form") from error
        raise
    return upload


class _Form:
    """Takes the parts of a form as its parser finds them."""

    def __init__(self, upload: Upload, file: IO[bytes], limit: int) -> None:
        self.ended = False
        self._upload = upload
        self._file = file
        self._left = limit
        self._fields_left = FIELD_BYTES
        self._header: tuple[bytes, bytes] = (b"", b"")
        self._name = ""
        self._is_file = False
        self._value = b""

    def callbacks(self) -> dict[str, object]:
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "end")
        return {f"on_{name}": getattr(self, f"_{name}") for name in names}

    def _part_begin(self) -> None:
        self._name, self._is_file, self._value, self._header = "", False, b"", (b"", b"")

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0] + self._small(data[start:end]), self._header[1])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0], self._header[1] + self._small(data[start:end]))

    def _header_end(self) -> None:
        (name, value), self._header = self._header, (b"", b"")
        if name.lower() != b"content-disposition":
            return
        _, options = parse_options_header(value)
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._is_file = self._name == "file"
        if self._is_file:
            if self._upload.filename is not None:
                raise BadUpload("file: is there twice")
            self._upload.filename = options.get(b"filename", b"").decode(errors="replace") or "upload"

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file:
            self._value += self._small(data[start:end])
            return
        self._left -= end - start
        if self._left < 0:
            raise TooLarge
        self._file.write(data[start:end])

    def _part_end(self) -> None:
        if not self._is_file:
            self._upload.fields[self._name] = self._value.decode(errors="replace")

    def _end(self) -> None:
        self.ended = True

    def _small(self, data: bytes) -> bytes:
        self._fields_left -= len(data)
        if self._fields_left < 0:
            raise BadUpload("the form's fields are too long")
        return data

"""Pictures, videos and sounds that a request names: data URLs, and files and hosts that the user has allowed.

A batch file is data, often somebody else's: a path or URL in it must not make the engine read what the user
did not mean to give away. So whatever is no data URL is read here, after it was checked, and handed on as a
data URL. SGLang itself opens no file and no connection.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import copy
import dataclasses
import mimetypes
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

import msgspec

from sglang.batch.records import Answer, BatchRequest
from sglang.batch.usage import BadUsage

if TYPE_CHECKING:
    import httpx

NOT_ALLOWED, UNAVAILABLE = "media_not_allowed", "media_unavailable"
"""Error codes: a reference outside the allowed set; an allowed one that cannot be read."""

MAX_BYTES = 256 << 20
"""Bytes of one file or download at most."""

AT_A_TIME = 16
"""Files and downloads that are read at a time."""

MAX_REDIRECTS = 5

SECONDS = 60.0
"""Seconds that one download may take, redirects included."""

_CONTENT = ("messages", "input", "query", "documents", "prompt")
"""Fields of a body that hold content, wherever in them media may be."""

_MEDIA = frozenset(
    ["file_url", "input_audio"]
    + [name for kind in ("image", "video", "audio") for name in (kind, f"{kind}_url", f"{kind}_data")]
)
"""Fields whose value is a reference, or holds some."""

_NO_MEDIA = frozenset(["tools", "tool_calls", "arguments"])
"""Fields of a message in which a name of `_MEDIA` means nothing: schemas, calls of the user's functions."""

_DATA_URL = re.compile(
    r"data:([A-Za-z0-9][\w.+-]*/[A-Za-z0-9][\w.+-]*(;[\w.+-]+=[\w.+-]+)*)?;base64,[A-Za-z0-9+/]*={0,2}",
    re.ASCII,
)
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(?P<host>\[[\da-f:.]+\]|[^\s/@?#:%*\\\[\]]+)(:(?P<port>\d{1,5}))?", re.IGNORECASE)
_PRINTABLE = re.compile(r"[!-\[\]-~]+")
"""What a URL may consist of: parsers differ about spaces, control characters, backslashes."""


class MediaRefused(Exception):
    """A request names something that it may not, or that cannot be read.

    Attributes:
        field: where in the body, as `messages.0.content.1.image_url.url`.
        code: NOT_ALLOWED or UNAVAILABLE.
    """

    def __init__(self, field: str, reason: str, code: str = NOT_ALLOWED) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.code = code


@dataclass(frozen=True)
class MediaPolicy:
    """What a batch may read beside data URLs; nothing by default.

    Attributes:
        folders: real paths; regular files anywhere below them.
        hosts: `host:port`, in ASCII and lower case.
    """

    folders: tuple[Path, ...] = ()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def of(cls, folders: Iterable[str], hosts: Iterable[str]) -> MediaPolicy:
        """Check what the user allows.

        Raises:
            BadUsage: a folder is none, or a host is more than `host` or `host:port`.
        """
        real = tuple(Path(os.path.realpath(folder)) for folder in folders)
        for folder in real:
            if not folder.is_dir():
                raise BadUsage(f"--allow-local-media {folder}: is no folder")
        return cls(real, frozenset().union(*map(_allowed_hosts, hosts)))

    def check(self, body: dict[str, Any]) -> None:
        """Check every reference in a body; downloads nothing.

        Raises:
            MediaRefused: one is outside the allowed set.
        """
        for reference in references(body):
            self.locate(reference)

    def locate(self, reference: Reference) -> LocalFile | httpx.URL | None:
        """Find what a reference is: a file, a URL, or None for a data URL.

        Raises:
            MediaRefused: it is outside the allowed set.
        """
        value = reference.value
        if reference.inline:
            if not _BASE64.fullmatch(value):
                raise MediaRefused(reference.field, "is not base64")
            return None
        if value.startswith("data:"):
            if not _DATA_URL.fullmatch(value):
                raise MediaRefused(reference.field, "is not a data URL of the form data:image/png;base64,...")
            return None
        if re.match("https?:", value, re.IGNORECASE):
            return self._url(reference)
        return self._file(reference)

    def _file(self, reference: Reference) -> LocalFile:
        if not self.folders:
            raise MediaRefused(
                reference.field,
                "only data URLs (data:image/png;base64,...) are read; --allow-local-media allows a folder",
            )
        path = reference.value
        if path.lower().startswith("file:"):
            rest = path[5:].removeprefix("//localhost") if path[5:].startswith("//localhost/") else path[5:]
            path = unquote(rest.removeprefix("//"))
            if not path.startswith("/"):
                raise MediaRefused(reference.field, "is not a URL of a local file: file:///folder/name")
        try:
            real = Path(os.path.realpath(path))
            folder = next((folder for folder in self.folders if real.is_relative_to(folder)), None)
            usable = folder is not None and real.is_file()
        except (OSError, ValueError):
            folder, usable = None, False
        if folder is None or not usable:
            raise MediaRefused(reference.field, "is no file below a folder that --allow-local-media names")
        return LocalFile(folder, real.relative_to(folder).parts)

    def _url(self, reference: Reference) -> httpx.URL:
        import httpx

        if not self.hosts:
            raise MediaRefused(
                reference.field,
                "nothing is downloaded, only data URLs are read; --allow-remote-media allows a host",
            )
        if not _PRINTABLE.fullmatch(reference.value):
            raise MediaRefused(
                reference.field, "is not a URL: it has spaces, backslashes or control characters"
            )
        try:
            url = httpx.URL(reference.value)
        except (httpx.InvalidURL, ValueError):
            raise MediaRefused(reference.field, "is not a URL") from None
        return self.check_url(reference.field, url)

    def check_url(self, where: str, url: httpx.URL) -> httpx.URL:
        """Check the URL that a client will be given, as that client has parsed it.

        Raises:
            MediaRefused: its host and port are not allowed, or it carries a user.
        """
        if url.scheme not in _PORTS or not url.raw_host:
            raise MediaRefused(where, "is not a URL of a host: https://host/name")
        if url.userinfo:
            raise MediaRefused(where, "names a user, which no URL here may")
        host = _host(url)
        if host not in self.hosts:
            raise MediaRefused(where, f"host {host} is not one that --allow-remote-media names")
        return url


def _host(url: httpx.URL) -> str:
    """Write host and port, in ASCII and lower case."""
    host = url.raw_host.decode("ascii").lower()
    port = _PORTS[url.scheme] if url.port is None else url.port
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def _allowed_hosts(text: str) -> set[str]:
    """Read one host of the user's; without a port it stands for the usual two."""
    import httpx

    parts = _HOST.fullmatch(text)
    try:
        if parts is None or not 0 < int(parts["port"] or 80) < 1 << 16:
            raise ValueError
        ports = (parts["port"],) if parts["port"] else map(str, _PORTS.values())
        return {_host(httpx.URL(f"http://{parts['host']}:{port}")) for port in ports}
    except (httpx.InvalidURL, ValueError):
        raise BadUsage(
            f"--allow-remote-media {text}: must be HOST or HOST:PORT, such as images.example.org"
        ) from None


@dataclass(frozen=True)
class LocalFile:
    """A file below an allowed folder; `parts` are the names on the way to it, none of them a link."""

    folder: Path
    parts: tuple[str, ...]

    def read(self) -> bytes:
        """Read it by way of its folders, so that no link that somebody puts there meanwhile leads away.

        Raises:
            OSError: it is gone, or no longer what it was.
            ValueError: it is larger than MAX_BYTES.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        opened = os.open(self.folder, flags | os.O_DIRECTORY)
        for i, part in enumerate(self.parts):
            last = i == len(self.parts) - 1
            try:
                opened, above = os.open(part, flags | (0 if last else os.O_DIRECTORY), dir_fd=opened), opened
            except OSError:
                os.close(opened)
                raise
            os.close(above)
        with os.fdopen(opened, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError("is no regular file")
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"is larger than {MAX_BYTES >> 20} MiB")
        return data


@dataclass(frozen=True)
class Reference:
    """One place in a body that names a picture, a video or a sound.

    Attributes:
        holder, key: the dict or list that holds the value, and where in it.
        field: the way there, with dots.
        value: the text there.
        inline: whether the text is the content itself in base64, as OpenAI's `input_audio` has it.
    """

    holder: Any
    key: str | int
    field: str
    value: str
    inline: bool = False


def references(body: dict[str, Any]) -> Iterator[Reference]:
    """Find every reference in a body, of whatever endpoint, in no particular order."""
    # Not recursive: a body may be nested as deeply as the JSON reader allows.
    todo: list[tuple[Any, str | int, str, bool]] = [
        (body, name, name, name in _MEDIA) for name in body if name in _MEDIA or name in _CONTENT
    ]
    while todo:
        holder, key, where, media = todo.pop()
        value = holder[key]
        if isinstance(value, str):
            if media:
                yield Reference(holder, key, where, value, inline=key == "data")
        elif isinstance(value, list):
            # Token ids are many, and no media.
            todo += [
                (value, i, f"{where}.{i}", media)
                for i, item in enumerate(value)
                if isinstance(item, str | list | dict)
            ]
        elif isinstance(value, dict):
            for name in value:
                if name not in _NO_MEDIA:
                    inside = name in _MEDIA or (media and name in ("url", "data"))
                    todo.append((value, name, f"{where}.{name}", inside))


class Answerer(Protocol):
    """Whoever answers requests."""

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run one request to its end."""


@dataclass
class MediaGate:
    """Stands before an engine, which gets requests with data URLs only.

    Attributes:
        engine: answers them.
        policy: what may be read.
    """

    engine: Answerer
    policy: MediaPolicy
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_A_TIME), init=False)
    _client: httpx.AsyncClient | None = field(default=None, init=False)

    async def answer(self, request: BatchRequest, request_id: str) -> Answer:
        """Run one request to its end; one that names what it may not is refused with status 400."""
        try:
            body = await self._with_data_urls(request.body)
        except MediaRefused as error:
            detail = {"message": str(error), "type": error.code, "param": error.field, "code": error.code}
            return Answer(400, msgspec.json.encode({"error": detail}), code=error.code, message=str(error))
        if body is not request.body:
            request = dataclasses.replace(request, body=body)
        return await self.engine.answer(request, request_id)

    async def _with_data_urls(self, body: dict[str, Any]) -> dict[str, Any]:
        """Read what a body names; one that names data URLs only is given back as it is."""
        if all(self.policy.locate(reference) is None for reference in references(body)):
            return body
        body = copy.deepcopy(body)
        for reference in list(references(body)):
            place = self.policy.locate(reference)
            if place is not None:
                async with self._room:
                    data = await self._read(reference.field, place)
                name = place.parts[-1] if isinstance(place, LocalFile) else place.path
                kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
                encoded = base64.b64encode(data).decode("ascii")
                reference.holder[reference.key] = f"data:{kind};base64,{encoded}"
        return body

    async def _read(self, where: str, place: LocalFile | httpx.URL) -> bytes:
        if not isinstance(place, LocalFile):
            return await self._download(where, place)
        try:
            return await asyncio.to_thread(place.read)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise MediaRefused(where, f"cannot be read: {reason}", UNAVAILABLE) from error

    async def _download(self, where: str, url: httpx.URL) -> bytes:
        """Download, and check each place that a redirect leads to before it is asked."""
        import httpx

        if self._client is None:
            self._client = httpx.AsyncClient(follow_redirects=False)
        try:
            async with asyncio.timeout(SECONDS):
                for _ in range(MAX_REDIRECTS + 1):
                    request = self._client.build_request("GET", url, headers={"Accept-Encoding": "identity"})
                    reply = await self._client.send(request, stream=True)
                    try:
                        if reply.next_request is None:
                            return await _content(reply)
                        url = self.policy.check_url(f"{where}: a redirect", reply.next_request.url)
                    finally:
                        await reply.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise MediaRefused(where, f"cannot be downloaded: {reason}", UNAVAILABLE) from error
        raise MediaRefused(where, f"cannot be downloaded: over {MAX_REDIRECTS} redirects", UNAVAILABLE)


async def _content(reply: httpx.Response) -> bytes:
    """Read a reply's bytes, as they were sent.

    Raises:
        ValueError: its status is not 200, or it is larger than MAX_BYTES.
    """
    if reply.status_code != 200:
        raise ValueError(f"status {reply.status_code}")
    data = bytearray()
    async for piece in reply.aiter_raw():
        data += piece
        if len(data) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
    return bytes(data)


def add_media_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what a batch may read."""
    parser.add_argument(
        "--allow-local-media",
        action="append",
        default=[],
        metavar="DIR",
        help="let requests name pictures, videos and sounds that are files below DIR; may be repeated"
        " (default: data URLs only)",
    )
    parser.add_argument(
        "--allow-remote-media",
        action="append",
        default=[],
        metavar="HOST",
        help="let requests name those that lie at HOST or HOST:PORT, http and https; may be repeated",
    )


def media_policy(options: argparse.Namespace) -> MediaPolicy:
    """Make the policy of a command's flags.

    Raises:
        BadUsage: see `MediaPolicy.of`.
    """
    return MediaPolicy.of(options.allow_local_media, options.allow_remote_media)

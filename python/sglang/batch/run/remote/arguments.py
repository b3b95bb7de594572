"""The flags of a run that sends its requests to servers."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sglang.batch.usage import BadUsage

DEFAULT_CONCURRENCY = 512
"""Requests that a server has at a time at most, unless it plans by itself."""

DEFAULT_RETRIES = 10
DEFAULT_TIMEOUT = 3600.0
"""Seconds until a request that a server holds is sent again."""

DEFAULT_PATIENCE = 300.0
"""Seconds without any server after which the run ends."""

MAX_WEIGHT = 64

API_KEY = "OPENAI_API_KEY"
"""Environment variable whose value is sent as bearer token, where no header says otherwise."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server.

    Attributes:
        url: without `/v1` and without a slash at its end.
        weight: its share of the requests, relative to those of the others.
    """

    url: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class RemoteArguments:
    """The checked flags.

    Attributes:
        concurrency: requests that each server has at a time at most; None for as many as it takes, if it
            plans by itself, and DEFAULT_CONCURRENCY otherwise.
        retries: times that a request is sent again.
        timeout: seconds that one attempt may take; servers that plan by themselves may take longer.
        patience: seconds without any server after which the run ends.
        headers: sent with every request. They are secrets: neither logged nor kept.
        model: the model of requests that name none; None for the servers' own.
        tokenizer: folder, file or hub name of a tokenizer that orders requests.
    """

    endpoints: tuple[Endpoint, ...]
    concurrency: int | None
    retries: int
    timeout: float
    patience: float
    headers: dict[str, str] = field(repr=False)
    model: str | None = None
    tokenizer: str | None = None


def add_remote_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; of these `--endpoint` alone makes a run remote."""
    group = parser.add_argument_group(
        "running servers",
        "Instead of loading a model, send requests to SGLang or other servers with OpenAI's API. Of the"
        " server flags only --model NAME (for requests that name none) and --tokenizer-path (orders requests"
        " by its tokens instead of pieces of four bytes) are taken then.",
    )
    group.add_argument(
        "--endpoint",
        action="append",
        metavar="URL[=WEIGHT]",
        help="a server, such as http://10.0.0.7:30000; several share the requests by weight (default: 1)",
    )
    group.add_argument(
        "--endpoint-concurrency",
        type=int,
        metavar="N",
        help=f"requests that each server has at a time at most (default: {DEFAULT_CONCURRENCY}, and the whole"
        " pool for SGLang under blend); adapts below that",
    )
    group.add_argument(
        "--endpoint-retries",
        type=int,
        default=DEFAULT_RETRIES,
        metavar="N",
        help="send a request again at most so often after 408, 429, 5xx and broken connections"
        " (default: %(default)s)",
    )
    group.add_argument(
        "--endpoint-timeout",
        type=float,
        default=DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help="send a request again that takes longer, except to SGLang under blend; 0 never"
        " (default: %(default)g)",
    )
    group.add_argument(
        "--endpoint-patience",
        type=float,
        default=DEFAULT_PATIENCE,
        metavar="SECONDS",
        help="end the run, to be continued, when no server can be reached for so long (default: %(default)g)",
    )
    group.add_argument(
        "--endpoint-header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="sent with every request; $VARIABLES are filled in, so that single quotes keep a secret out of"
        f" the process list. Authorization is 'Bearer ${API_KEY}' by itself, if that is set",
    )


def check_remote(options: argparse.Namespace, rest: Sequence[str]) -> RemoteArguments | None:
    """Check the flags; None for a run without servers.

    Args:
        rest: flags that the parser did not know.

    Raises:
        BadUsage: a flag is wrong, or makes no sense with servers.
    """
    if options.endpoint is None:
        for flag in ("endpoint_concurrency", "endpoint_header"):
            if getattr(options, flag):
                raise BadUsage(f"--{flag.replace('_', '-')}: needs --endpoint")
        return None
    for flag, minimum in (("concurrency", 1), ("retries", 0), ("timeout", 0), ("patience", 0)):
        value = getattr(options, f"endpoint_{flag}")
        if value is not None and not (value >= minimum and math.isfinite(value)):
            raise BadUsage(f"--endpoint-{flag} {value:g}: must be at least {minimum}")
    endpoints = tuple(_endpoint(text) for text in options.endpoint)
    urls = [endpoint.url for endpoint in endpoints]
    if twice := next((url for url in urls if urls.count(url) > 1), None):
        raise BadUsage(f"--endpoint {twice}: is given twice; give it a weight instead, {twice}=2")
    model, tokenizer = _of_server_flags(rest)
    return RemoteArguments(
        endpoints=endpoints,
        concurrency=options.endpoint_concurrency,
        retries=options.endpoint_retries,
        timeout=options.endpoint_timeout,
        patience=options.endpoint_patience,
        headers=_headers(options.endpoint_header),
        model=model,
        tokenizer=tokenizer,
    )


def _endpoint(text: str) -> Endpoint:
    """Read `URL` or `URL=WEIGHT`.

    >>> _endpoint("http://10.0.0.7:30000/v1/=3")
    Endpoint(url='http://10.0.0.7:30000', weight=3)
    """
    url, _, weight = text.rpartition("=") if "=" in text else (text, "", "1")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise BadUsage(f"--endpoint {url}: is no URL") from None
    if parts.username is not None or parts.password is not None:
        raise BadUsage(f"--endpoint {parts.hostname}: pass user and password with --endpoint-header")
    if not valid or parts.query or parts.fragment:
        raise BadUsage(
            f"--endpoint {text}: must be like http://host:port, or http://host:port=3 with a weight"
        )
    if not (weight.isascii() and weight.isdigit() and 1 <= int(weight) <= MAX_WEIGHT):
        raise BadUsage(f"--endpoint {text}: the weight must be a whole number from 1 to {MAX_WEIGHT}")
    return Endpoint(url.rstrip("/").removesuffix("/v1"), int(weight))


def _headers(given: Sequence[str]) -> dict[str, str]:
    headers = {}
    for number, text in enumerate(given, start=1):
        name, colon, value = (part.strip() for part in os.path.expandvars(text).partition(":"))
        if not colon or not name.replace("-", "").isalnum() or not name.isascii() or not value.isprintable():
            # What was given may be a secret: it is not repeated.
            raise BadUsage(f"--endpoint-header: the value number {number} must be like 'Name: value'")
        headers[name.title()] = value
    if key := os.environ.get(API_KEY):
        headers.setdefault("Authorization", f"Bearer {key}")
    return headers


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise BadUsage(message)


def _of_server_flags(rest: Sequence[str]) -> tuple[str | None, str | None]:
    """Take the two flags of a server that mean something here."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model")
    parser.add_argument("--tokenizer-path")
    known, unknown = parser.parse_known_args(list(rest))
    if unknown:
        raise BadUsage(
            f"{unknown[0]}: with --endpoint a server has its own flags; of them this command takes --model"
            " NAME and --tokenizer-path only"
        )
    return known.model, known.tokenizer_path

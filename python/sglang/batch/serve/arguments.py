"""The command line of `sglang-batch serve`: its own few flags; the rest is the server's."""

from __future__ import annotations

import argparse
import ipaddress
import math
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang.batch.media import MediaPolicy, add_media_arguments, media_policy
from sglang.batch.run.arguments import DEFAULT_POOL, add_engine_arguments
from sglang.batch.run.remote.arguments import RemoteArguments, add_remote_arguments, check_remote
from sglang.batch.serve.keys import Keys, read_keys
from sglang.batch.serve.log import FORMATS
from sglang.batch.serve.online import DEFAULT_MOST
from sglang.batch.serve.quotas import Quotas
from sglang.batch.serve.tracing import Tracing, otlp
from sglang.batch.server_flags import with_defaults
from sglang.batch.usage import BadUsage, check_folder

USAGE = (
    "sglang-batch serve --store DIR (--model-path MODEL | --endpoint URL) [options]"
    " [server flags: --help-server]"
)

DESCRIPTION = (
    "Serve OpenAI's Files and Batches API (/v1/files, /v1/batches, /v1/models) on your own engine, for the"
    " openai client and others; online requests (/v1/chat/completions and the like) go ahead of all batches."
    " Batches outlive the service: started again with the same store, after a signal or a crash, it goes on"
    " with them. Every flag of the SGLang server is accepted too (--help-server lists them), --host and"
    " --port apart, which are the service's."
)

EPILOG = (
    "exit codes: 0 stopped by a signal, 2 bad usage, 3 engine failed, 4 disk failed; the same command goes"
    " on. Each batch is a job as `sglang-batch run` has them; its files are in STORE/batches."
)


@dataclass(frozen=True)
class ServeArguments:
    """The checked flags.

    Attributes:
        store: folder of what the service keeps.
        file_bytes: of an upload at most.
        lines: of a batch at most.
        quotas: of each key.
        certificate, private_key: files for TLS; None without.
        pool: requests in flight at most, of all batches together.
        online: requests of online users in flight at most; 0 if none are passed through.
        engine_restarts: deaths of the engine in a row, without an answer between, that are put up with.
        start_timeout: seconds that the engine has to start.
        stall_timeout: seconds without any progress after which the engine counts as dead.
        log_format: of what the operator is told, see `log.FORMATS`.
        tracing: makes spans, if any.
        server: flags for the server's own parser; none for a remote engine.
        remote: running servers that answer; None for an engine of the service's own.
    """

    store: Path
    host: str
    port: int
    keys: Keys
    file_bytes: int
    lines: int
    quotas: Quotas
    certificate: Path | None
    private_key: Path | None
    pool: int
    online: int
    engine_restarts: int
    start_timeout: float
    stall_timeout: float
    media: MediaPolicy
    log_format: str
    tracing: Tracing
    server: list[str]
    remote: RemoteArguments | None


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that are `serve`'s own; none is required here, so that `--help-server` works alone."""
    parser.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="folder for files and batches, made if it is not there; whoever reads it reads all prompts",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: %(default)s)")
    parser.add_argument(
        "--api-keys",
        type=Path,
        metavar="FILE",
        help="lines of a key's SHA-256 and a name, such as `printf %%s KEY | sha256sum` prints; each key sees"
        " what was made with it only. Read again when it changes. Without keys, only this machine may call",
    )
    parser.add_argument(
        "--max-file-mb",
        type=float,
        default=200,
        metavar="MB",
        help="size of an upload at most, in 10^6 bytes (default: %(default)g)",
    )
    parser.add_argument(
        "--max-requests",
        type=int,
        default=50_000,
        metavar="N",
        help="requests of a batch at most (default: %(default)s)",
    )
    parser.add_argument(
        "--pool",
        type=int,
        default=DEFAULT_POOL,
        metavar="N",
        help="requests in flight at most, of all batches together (default: %(default)s)",
    )
    parser.add_argument(
        "--max-online",
        type=int,
        default=DEFAULT_MOST,
        metavar="N",
        help="online requests (/v1/chat/completions and the like) in flight at most, which go ahead of all"
        " batches; one more is answered with 429; 0 passes none through (default: %(default)s)",
    )
    _add_log(parser)
    _add_quotas(parser)
    _add_tls(parser)
    add_engine_arguments(parser)
    add_media_arguments(parser)
    add_remote_arguments(parser)
    parser.add_argument(
        "--help-server", action="store_true", help="show the server's flags, which are all accepted, and exit"
    )


def _add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log-format",
        choices=FORMATS,
        default=FORMATS[0],
        help="of what is told on stderr; as json also a line for each request, never with what is in it"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--otel",
        action="store_true",
        help="send spans of requests and batches to an OpenTelemetry collector (OTLP over HTTP), never with"
        " what is in a request; OTEL_EXPORTER_OTLP_ENDPOINT says where, the other OTEL_* variables count too",
    )


def _add_quotas(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-open-batches",
        type=int,
        default=math.inf,
        metavar="N",
        help="of a key at a time; one more is answered with 429 (default: any number)",
    )
    parser.add_argument(
        "--max-stored-mb",
        type=float,
        default=math.inf,
        metavar="MB",
        help="uploads and results of a key, in 10^6 bytes; an upload beyond is answered with 413"
        " (default: any number)",
    )
    parser.add_argument(
        "--max-daily-tokens",
        type=int,
        default=math.inf,
        metavar="N",
        help="tokens, in and out, of a key's batches in a day (UTC); a batch is begun while some are left,"
        " and runs to its end (default: any number)",
    )


def _add_tls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ssl-certfile", type=Path, metavar="FILE", help="serve https with this certificate (PEM)"
    )
    parser.add_argument(
        "--ssl-keyfile", type=Path, metavar="FILE", help="the certificate's private key (PEM)"
    )


def check_serve(options: argparse.Namespace, rest: Sequence[str]) -> ServeArguments:
    """Check what can be checked before a model is loaded.

    Args:
        rest: flags that the parser did not know.

    Raises:
        BadUsage: something is missing, wrong or unsafe.
    """
    if options.store is None:
        raise BadUsage("--store is required")
    check_folder("--store", options.store)
    if options.store.exists() and not options.store.is_dir():
        raise BadUsage(f"--store {options.store}: is no folder; name one")
    for flag, minimum in (
        ("port", 0),
        ("max_file_mb", 0.001),
        ("max_requests", 1),
        ("pool", 1),
        ("max_online", 0),
        ("max_open_batches", 1),
        ("max_stored_mb", 0.001),
        ("max_daily_tokens", 1),
        ("engine_restarts", 0),
        ("start_timeout", 1),
        ("stall_timeout", 1),
    ):
        if not getattr(options, flag) >= minimum:
            value = getattr(options, flag)
            raise BadUsage(f"--{flag.replace('_', '-')} {value:g}: must be at least {minimum}")
    keys = read_keys(options.api_keys)
    if not keys.required and not _loopback(options.host):
        raise BadUsage(
            f"--host {options.host}: anybody who reaches it could read and delete all; pass --api-keys too"
        )
    _check_tls(options.ssl_certfile, options.ssl_keyfile)
    remote = check_remote(options, rest)
    return ServeArguments(
        store=options.store,
        host=options.host,
        port=options.port,
        keys=keys,
        file_bytes=int(options.max_file_mb * 1e6),
        lines=options.max_requests,
        quotas=Quotas(options.max_open_batches, options.max_stored_mb * 1e6, options.max_daily_tokens),
        certificate=options.ssl_certfile,
        private_key=options.ssl_keyfile,
        pool=options.pool,
        online=options.max_online,
        engine_restarts=options.engine_restarts,
        start_timeout=options.start_timeout,
        stall_timeout=options.stall_timeout,
        media=media_policy(options),
        log_format=options.log_format,
        tracing=otlp() if options.otel else Tracing(),
        server=with_defaults(rest) if remote is None else [],
        remote=remote,
    )


def _check_tls(certificate: Path | None, key: Path | None) -> None:
    if (certificate is None) != (key is None):
        raise BadUsage("--ssl-certfile and --ssl-keyfile go together")
    if certificate is not None and key is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
        except OSError as error:
            raise BadUsage(f"--ssl-certfile {certificate} --ssl-keyfile {key}: {error}") from error


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

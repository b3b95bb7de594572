"""`sglang-batch serve`: the store opened, the engine and the API up, batches carried out until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import uvicorn

from sglang.batch.records import RequestFailed
from sglang.batch.run.blend_history import BlendState
from sglang.batch.run.command import DISK_FAILED, ENGINE_FAILED, WORKER, collecting_rarely
from sglang.batch.run.committer import CommitLimits, DiskFailed, is_full
from sglang.batch.run.engine.protocol import Engine, EngineDied, EngineFailed
from sglang.batch.run.engine.supervisor import Supervisor
from sglang.batch.run.identity import identity
from sglang.batch.run.lock import Locked, locked
from sglang.batch.run.remote.arguments import RemoteArguments
from sglang.batch.run.remote.client import first_priority
from sglang.batch.run.remote.command import remote_identity
from sglang.batch.run.remote.engine import RemoteEngine, ServersUnavailable
from sglang.batch.run.stops import Stops
from sglang.batch.serve.api import make_app
from sglang.batch.serve.arguments import USAGE, ServeArguments
from sglang.batch.serve.batches import Batches, BatchLimits
from sglang.batch.serve.keys import Keys
from sglang.batch.serve.log import sayer
from sglang.batch.serve.metrics import totals
from sglang.batch.serve.online import Online, OnlineEngine, OwnEngine
from sglang.batch.serve.reserve import Reserve
from sglang.batch.serve.room import Room
from sglang.batch.serve.service import Service
from sglang.batch.serve.shared_engine import SharedEngine
from sglang.batch.serve.speeds import EVERY, Speeds
from sglang.batch.serve.store import Store
from sglang.batch.server_flags import parse_server_args
from sglang.batch.usage import BadUsage
from sglang.srt.blend.runtime.arguments import rank_count

STOPPED = 0
"""Exit code of a service that a signal has stopped."""

IDLE_SECONDS = 75
"""Seconds that an idle connection is kept: longer than clients do, so that none is used as it is closed."""

REREAD_SECONDS = 2.0
"""Seconds between two looks whether the file of keys has changed."""

Say = Callable[[str], object]
"""Tells the operator something."""

PRIORITY_POLICIES = ("blend", "fcfs", "lof")
"""Schedule policies that can let some requests go first."""

PRIORITIES = ("--enable-priority-scheduling", "--default-priority-value", "0")
"""Flags that let them."""

LAST_REPLIES = 5
"""Seconds that replies get to end when the service stops."""

SWEEP_SECONDS = 60.0
"""Seconds between two looks for files that have expired."""


@dataclass(frozen=True)
class ServedEngine:
    """What answers.

    Attributes:
        alive: tells whether it lives, as far as anybody knows.
        restarts: deaths in a row that are put up with.
        models: names by which requests call its models.
        deciding: what decides answers, see `run.identity.identity`.
        pool: requests that it takes at most; None for any number.
        online: the same, for requests that go first; None if it runs none.
        priorities: whether it takes requests of a higher priority first.
        plans: whether its scheduler looks at expected lengths of answers.
        gpus: that it has; 1 where nobody knows.
    """

    engine: Engine
    alive: Callable[[], bool]
    restarts: int
    models: tuple[str, ...]
    deciding: dict[str, Any]
    pool: int | None = None
    online: OnlineEngine | None = None
    priorities: bool = False
    plans: bool = False
    gpus: int = 1


def serve(arguments: ServeArguments) -> int:
    """Serve until a signal comes, or the engine or the disk fails.

    Returns:
        The exit code, as `arguments` explains it.

    Raises:
        BadUsage: the service cannot run as given.
    """
    say = sayer(arguments.log_format)
    if arguments.remote is None:
        return serve_by(arguments, lambda store: _own_engine(arguments, store), asyncio.new_event_loop())
    try:
        remote = RemoteEngine(arguments.remote, pool=arguments.pool, say=say)
    except ServersUnavailable as error:
        say(str(error))
        return ENGINE_FAILED
    try:
        served = _remote_engine(remote, arguments.remote)
        return serve_by(arguments, lambda store: served, remote.loop)
    finally:
        remote.shutdown()


def serve_by(
    arguments: ServeArguments,
    make_engine: Callable[[Store], ServedEngine],
    loop: asyncio.AbstractEventLoop,
) -> int:
    """Serve with some engine; see `serve`.

    Args:
        make_engine: makes what answers, once the store is open.
        loop: that the engine belongs to.
    """
    store = Store(arguments.store)
    try:
        with locked(store.root / "lock"), _listening(arguments) as listening, collecting_rarely():
            store.clear_leftovers()
            return loop.run_until_complete(_serve(arguments, store, make_engine(store), listening))
    except Locked as error:
        raise BadUsage(f"--store {arguments.store}: is served by {error}") from None
    except (OSError, sqlite3.Error) as error:
        sayer(arguments.log_format)(f"the disk failed: {error}; the same command goes on")
        return DISK_FAILED
    finally:
        store.close()


def _own_engine(arguments: ServeArguments, store: Store) -> ServedEngine:
    flags = arguments.server
    server_args = parse_server_args(flags, usage=USAGE)
    if server_args.schedule_policy in PRIORITY_POLICIES:
        flags = [*PRIORITIES, *flags]
        server_args = parse_server_args(flags, usage=USAGE)
    enabled = server_args.enable_priority_scheduling
    low_first = server_args.schedule_low_priority_values_first
    start, stall = arguments.start_timeout, arguments.stall_timeout
    engine = Supervisor(WORKER, flags, job=store.id, start=start, stall=stall)
    return ServedEngine(
        engine,
        lambda: engine.alive,
        arguments.engine_restarts,
        (getattr(server_args, "served_model_name", None) or server_args.model_path,),
        identity(server_args),
        server_args.max_queued_requests,
        OwnEngine(engine, first_priority(enabled, low_first=low_first)),
        priorities=enabled and not low_first,
        plans=server_args.schedule_policy == "blend",
        gpus=rank_count(server_args),
    )


def _remote_engine(engine: RemoteEngine, arguments: RemoteArguments) -> ServedEngine:
    # Servers that are gone for longer than --endpoint-patience are not waited for again.
    models = () if engine.model is None else (engine.model,)
    return ServedEngine(engine, lambda: True, 0, models, remote_identity(engine.model), online=engine)


@contextlib.contextmanager
def _listening(arguments: ServeArguments) -> Any:
    family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
    try:
        listening = socket.create_server((arguments.host, arguments.port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise BadUsage(f"--host {arguments.host} --port {arguments.port}: cannot listen: {error}") from error
    with listening:
        # Connections inherit it. asyncio sets it where a socket's protocol is TCP, and here Python says 0.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listening


class _Server(uvicorn.Server):
    """A server that leaves signals to the service."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


async def _serve(
    arguments: ServeArguments, store: Store, served: ServedEngine, listening: socket.socket
) -> int:
    stops, say = Stops(), sayer(arguments.log_format)
    pool = _pool(arguments, served)
    engine = _shared(served, pool, say)
    limits = BatchLimits(
        lines=arguments.lines,
        pool=pool,
        commits=CommitLimits(),
        media=arguments.media,
        identity=served.deciding,
        plans=served.plans,
        gpus=served.gpus,
    )
    reserve = Reserve(store.root, arguments.lines)
    batches = Batches(store, reserve, engine, limits, say, arguments.tracing)
    batches.go_on()
    service = Service(
        store,
        reserve,
        batches,
        arguments.keys,
        served.models,
        int(time.time()),
        arguments.file_bytes,
        arguments.quotas,
        lambda: engine.is_up,
        Speeds(),
        online=None
        if served.online is None or not arguments.online
        else Online(served.online, engine, arguments.media, arguments.online),
    )
    server = _server(service, arguments)
    answering = asyncio.ensure_future(server.serve([listening]))
    starting = asyncio.ensure_future(_start(engine, say))
    watching = asyncio.ensure_future(engine.watch())
    sweeping = asyncio.ensure_future(_sweep(store, reserve))
    rereading = asyncio.ensure_future(_reread(arguments.keys, say))
    measuring = asyncio.ensure_future(_measure(service, served.engine))
    host, port = listening.getsockname()[:2]
    scheme = "http" if arguments.certificate is None else "https"
    say(f"listening on {scheme}://{f'[{host}]' if ':' in host else host}:{port}/v1")
    try:
        ends = (stops.first, engine.failed, batches.failed, answering, sweeping, rereading, measuring)
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        return _how_it_ended(stops, engine, batches, say)
    finally:
        for task in (starting, watching, sweeping, rereading, measuring):
            task.cancel()
        server.should_exit = True
        await batches.stop()
        reserve.drop()
        await asyncio.wait({answering}, timeout=2 * LAST_REPLIES)
        await engine.stop()
        await asyncio.to_thread(arguments.tracing.shutdown)


def _server(service: Service, arguments: ServeArguments) -> _Server:
    return _Server(
        uvicorn.Config(
            make_app(service, arguments.log_format, arguments.tracing),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=LAST_REPLIES,
            timeout_keep_alive=IDLE_SECONDS,
            lifespan="off",
            ssl_certfile=arguments.certificate,
            ssl_keyfile=arguments.private_key,
        )
    )


def _pool(arguments: ServeArguments, served: ServedEngine) -> int:
    """Count the requests of batches in flight at most: the engine takes the online ones beside them."""
    if not served.pool:
        return arguments.pool
    return max(min(arguments.pool, served.pool - arguments.online), 1)


def _shared(served: ServedEngine, pool: int, say: Say) -> SharedEngine:
    return SharedEngine(
        served.engine,
        alive=served.alive,
        room=Room(pool),
        priorities=served.priorities,
        restarts=served.restarts,
        say=say,
    )


async def _start(engine: SharedEngine, say: Say) -> None:
    with contextlib.suppress(EngineFailed):  # `failed` has it
        await engine.up()
        say("the engine is up")


async def _sweep(store: Store, reserve: Reserve) -> None:
    while True:
        try:
            store.delete_expired_files()
        except sqlite3.Error as error:
            if not is_full(error, store.root):
                raise
        reserve.hold()
        await asyncio.sleep(SWEEP_SECONDS)


async def _reread(keys: Keys, say: Say) -> None:
    while True:
        await asyncio.sleep(REREAD_SECONDS)
        if (told := keys.refresh()) is not None:
            say(told)


async def _measure(service: Service, engine: Engine) -> None:
    while True:
        service.speeds.note(time.monotonic(), totals(service))
        blend: object = None
        if service.engine_up():
            with contextlib.suppress(EngineDied, RequestFailed):
                blend = (await engine.internal_state())[0].get("blend")
        service.uses.note(time.monotonic(), cast(BlendState, blend) if isinstance(blend, dict) else None)
        await asyncio.sleep(EVERY)


def _how_it_ended(stops: Stops, engine: SharedEngine, batches: Batches, say: Say) -> int:
    """Say why the service ends; returns its exit code.

    Raises:
        Exception: an error that is neither the engine's nor the disk's.
    """
    if stops.first.done():
        say("stopping; the same command goes on")
        return STOPPED
    error = batches.failed.result() if batches.failed.done() else None
    if engine.failed.done() or isinstance(error, EngineFailed | EngineDied):
        say(f"{engine.failed.result() if engine.failed.done() else error}; the same command goes on")
        return ENGINE_FAILED
    if isinstance(error, DiskFailed | OSError | sqlite3.Error):
        say(f"the disk failed: {error}; the same command goes on")
        return DISK_FAILED
    raise error or RuntimeError("the API has ended")

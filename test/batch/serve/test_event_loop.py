"""What would keep the service's one event loop from its callers."""

import argparse
import asyncio
import gc
import inspect
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from sglang.batch.run.command import COLLECT_AFTER
from sglang.batch.serve import api, online_routes
from sglang.batch.serve.arguments import ServeArguments, add_serve_arguments, check_serve
from sglang.batch.serve.command import ServedEngine, _listening, serve_by
from sglang.batch.serve.store import Store
from sglang.batch.usage import BadUsage


def arguments(folder: Path) -> ServeArguments:
    parser = argparse.ArgumentParser()
    add_serve_arguments(parser)
    options = parser.parse_args(["--store", str(folder / "store"), "--port", "0"])
    return check_serve(options, ["--model-path", "m"])


def calls(dependant: Dependant) -> Iterator[Any]:
    yield dependant.call
    for other in dependant.dependencies:
        yield from calls(other)


def test_no_request_waits_for_a_thread() -> None:
    """FastAPI calls in a thread what is not `async`: two more turns of the loop each."""
    routers = (api.router, api.seen, online_routes.router)
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    assert len(routes) > 10
    for route in routes:
        for call in calls(route.dependant):
            assert inspect.iscoroutinefunction(call), (route.path, call)


def test_garbage_is_looked_for_rarely_while_it_serves(tmp_path: Path) -> None:
    """Among all that SGLang imports that takes a tenth of a second."""
    usual = gc.get_threshold()

    def make_engine(store: Store) -> ServedEngine:
        assert gc.get_threshold()[0] == COLLECT_AFTER
        assert gc.get_freeze_count() > 0
        raise BadUsage("it has begun")

    loop = asyncio.new_event_loop()
    with pytest.raises(BadUsage, match="it has begun"):
        serve_by(arguments(tmp_path), make_engine, loop)
    loop.close()
    assert gc.get_threshold() == usual


def test_the_second_packet_of_a_reply_does_not_wait_for_the_client_to_confirm_the_first(
    tmp_path: Path,
) -> None:
    """Which may take 40 ms, and a reply has two: headers and body."""
    with (
        _listening(arguments(tmp_path)) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

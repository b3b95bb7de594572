"""`sglang-batch run --endpoint`: the servers are asked what they are, then the run begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from sglang.batch.run.arguments import RunArguments
from sglang.batch.run.command import ENGINE_FAILED, run, say
from sglang.batch.run.remote.arguments import RemoteArguments
from sglang.batch.run.remote.engine import RemoteEngine, ServersUnavailable
from sglang.batch.upstream import ServerArgs


@dataclass(frozen=True)
class Servers:
    """What a run says and reports of servers, in the place of a server's arguments."""

    model_path: str
    schedule_policy: str
    device: str
    max_queued_requests: None = None


def run_remote(arguments: RunArguments, remote: RemoteArguments) -> int:
    """Answer the lines of the input that have no record yet, by running servers.

    Returns:
        The exit code, as `cli` explains it.

    Raises:
        BadUsage: the job cannot be continued as asked.
    """
    try:
        engine = RemoteEngine(remote, pool=arguments.pool, say=partial(say, quiet=arguments.quiet))
    except ServersUnavailable as error:
        say(str(error))
        return ENGINE_FAILED
    try:
        servers = Servers(
            model_path=", ".join(endpoint.url for endpoint in remote.endpoints),
            schedule_policy=engine.describe(),
            device=f"{len(remote.endpoints)} server{'s' if len(remote.endpoints) > 1 else ''}",
        )
        return run(
            # Servers that are gone for longer than --endpoint-patience are not waited for again.
            replace(arguments, engine_restarts=0),
            cast(ServerArgs, servers),
            lambda job: engine,
            deciding=remote_identity(engine.model),
            loop=engine.loop,
        )
    finally:
        engine.shutdown()


def remote_identity(model: str | None) -> dict[str, Any]:
    """Describe what decides answers: the model, wherever it runs."""
    return {"engine": "running servers", "--model": model}

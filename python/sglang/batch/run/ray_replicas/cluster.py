"""Ray: connected to or started, and actors on it. Nothing else here imports it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec
from typing import Any, TypeVar

from sglang.batch.run.ray_replicas.actor import Place, ReplicaActor
from sglang.batch.run.ray_replicas.arguments import RayArguments
from sglang.batch.run.ray_replicas.replica import ActorGone
from sglang.batch.usage import BadUsage

T = TypeVar("T")

OBJECT_STORE_BYTES = 100 << 20
"""Object store of a Ray that is started here: requests and answers hardly use it."""

SHOWN = 300
"""Characters of Ray's words about a death that are repeated."""


@contextlib.contextmanager
def connected(arguments: RayArguments) -> Iterator[None]:
    """Be connected to a cluster, or to a Ray on this machine that ends with the run.

    Raises:
        BadUsage: Ray is not installed, or no cluster is there.
    """
    if find_spec("ray") is None:
        raise BadUsage('--ray: needs Ray; pip install "sglang-blend[ray]"')
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    here: dict[str, Any] = {}
    if arguments.address is None:
        here = {
            "num_cpus": max(os.cpu_count() or 1, arguments.most * (arguments.cpus or 1)),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(
            address=arguments.address or "local",
            namespace="sglang-batch",
            logging_level=logging.ERROR,
            **here,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"--address {arguments.address}" if arguments.address else "--ray"
        raise BadUsage(f"{where}: {_brief(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def gpus_per_replica(arguments: RayArguments, *, parallel: int, on_cpu: bool) -> float:
    """Decide how many GPUs a replica reserves.

    Args:
        parallel: GPUs that its engine works on.
        on_cpu: whether the user wants it to run on a CPU.
    """
    import ray

    if arguments.gpus is not None:
        return arguments.gpus
    if arguments.address is None:
        found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        on_cpu = on_cpu or not found.get("GPU")
    # A cluster may be empty yet: then its autoscaler has to hear of the GPUs.
    return 0 if on_cpu else parallel


def cpus_per_replica(arguments: RayArguments, *, gpus: float) -> int:
    """Decide how many CPUs a replica reserves; Ray lets its processes compute with as many threads each.

    Args:
        gpus: that it reserves.

    >>> [cpus_per_replica(RayArguments("auto", 1, 2, None, cpus), gpus=0) for cpus in (None, 4)]
    [1, 4]
    """
    if arguments.cpus is not None:
        return arguments.cpus
    if gpus or arguments.address is not None:
        return 1
    return max((os.cpu_count() or 1) // arguments.most, 1)


def creator(
    actor: type[ReplicaActor], flags: list[str], *, gpus: float, cpus: int = 1, start: float, stall: float
) -> Callable[[str], RayActor]:
    """Make what asks Ray for the actor of a replica, by the replica's name.

    Actors die with this process. The driver starts them again, not Ray: it knows what was open.
    """
    import ray

    remote: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(actor)
    return lambda name: RayActor(remote.remote(flags, name, start, stall))


class RayActor:
    """A handle; see `replica.Actor`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def place(self) -> Place:
        """Wait until it is placed; where it is then."""
        return await _result(self._handle.place.remote())

    async def launch(self) -> str | None:
        """Start its engine; says why if that fails."""
        return await _result(self._handle.launch.remote())

    def submit(self, frame: bytes) -> None:
        """Hand requests over."""
        self._handle.submit.remote(frame)

    async def take(self) -> list[bytes]:
        """Wait for answers, or a beat."""
        return await _result(self._handle.take.remote())

    async def state(self) -> list[dict[str, Any]]:
        """Ask every data-parallel rank's scheduler for its state."""
        return await _result(self._handle.state.remote())

    async def stop(self) -> None:
        """Stop its engine in order."""
        await _result(self._handle.stop.remote())

    def kill(self) -> None:
        """End it, placed or not."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self._handle)


async def _result(reference: Awaitable[T]) -> T:
    from ray.exceptions import RayError

    try:
        return await reference
    except RayError as error:
        raise ActorGone(_brief(error)) from error


def _brief(error: Exception) -> str:
    """Shorten what Ray says, which may be pages.

    >>> _brief(RuntimeError("The actor died.\\n\\tclass_name: A\\n\\tactor_id: 7\\nIts node has died."))
    'The actor died. Its node has died.'
    """
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    text = " ".join(line.strip() for line in lines) or type(error).__name__
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."

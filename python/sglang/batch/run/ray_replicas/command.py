"""`sglang-batch run --ray`: connected to Ray, then the run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from sglang.batch.run.arguments import RunArguments
from sglang.batch.run.command import run, say
from sglang.batch.run.ray_replicas.actor import ReplicaActor
from sglang.batch.run.ray_replicas.arguments import RayArguments
from sglang.batch.run.ray_replicas.cluster import connected, cpus_per_replica, creator, gpus_per_replica
from sglang.batch.run.ray_replicas.engine import RayEngine, ReplicaLimits
from sglang.batch.upstream import ServerArgs
from sglang.srt.blend.runtime.arguments import rank_count


def run_ray(
    arguments: RunArguments,
    ray: RayArguments,
    server_args: ServerArgs,
    *,
    actor: type[ReplicaActor] = ReplicaActor,
) -> int:
    """Answer the lines of the input that have no record yet, by replicas.

    Args:
        server_args: what the server's flags say.
        actor: what holds a replica's engine.

    Returns:
        The exit code, as `cli` explains it.

    Raises:
        BadUsage: the job cannot be continued as asked, or Ray cannot be used.
    """
    with connected(ray):
        gpus = gpus_per_replica(ray, parallel=rank_count(server_args), on_cpu=server_args.device == "cpu")
        create = creator(
            actor,
            arguments.server,
            gpus=gpus,
            cpus=cpus_per_replica(ray, gpus=gpus),
            start=arguments.start_timeout,
            stall=arguments.stall_timeout,
        )
        limits = ReplicaLimits(
            least=ray.least,
            most=ray.most,
            pool=arguments.pool,
            restarts=arguments.engine_restarts,
            start=arguments.start_timeout,
        )
        return run(
            # Each replica is started again by itself; a run that has none left is over.
            replace(arguments, engine_restarts=0),
            server_args,
            lambda job: RayEngine(
                create,
                limits,
                job=job.id,
                model=server_args.model_path,
                plans=server_args.schedule_policy == "blend",
                say=partial(say, quiet=arguments.quiet),
            ),
        )

"""The flags of a run on Ray."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from sglang.batch.usage import BadUsage

MOST_REPLICAS = 1024

WINDOW = 4096
"""Requests that a replica has at a time at most: several times what fits into a GPU's batch, so that its
scheduler has a choice, and few enough that what has not begun can go to another one."""


@dataclass(frozen=True, slots=True)
class RayArguments:
    """The checked flags.

    Attributes:
        address: of the cluster; None for a Ray on this machine that ends with the run.
        least: replicas that are waited for, for a while.
        most: replicas that are asked for.
        gpus: GPUs that Ray reserves for each; None for as many as its engine works on.
        cpus: CPUs that Ray reserves for each; None for one, or on this machine for its share of them.
    """

    address: str | None
    least: int
    most: int
    gpus: float | None
    cpus: int | None = None


def add_ray_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; of these `--ray` alone makes a run use Ray."""
    group = parser.add_argument_group(
        "replicas on Ray",
        "Share the requests among engines that Ray places, on this machine or on a cluster whose nodes have"
        ' the same sglang-blend; needs pip install "sglang-blend[ray]". The server flags are those of each.',
    )
    group.add_argument("--ray", action="store_true", help="run replicas of the engine as actors of Ray")
    group.add_argument(
        "--address",
        metavar="A",
        help="the cluster: auto (the one this machine belongs to) or HOST:PORT of its head; not ray://"
        " (default: a Ray on this machine that ends with the run)",
    )
    group.add_argument(
        "--replicas",
        metavar="N|N..M",
        help="engines: N, or N to M as the cluster has room; those that get none within a minute or two join"
        " when they do (default: 1)",
    )
    group.add_argument(
        "--gpus-per-replica",
        type=float,
        metavar="G",
        help="GPUs that Ray reserves for each (default: as many as --tp-size and the like need; none with"
        " --device cpu, or on a machine without any)",
    )
    group.add_argument(
        "--cpus-per-replica",
        type=int,
        metavar="C",
        help="CPUs that Ray reserves for each, and threads with which an engine without a GPU computes"
        " (default: 1; its share of this machine for an engine without a GPU and without --address)",
    )


def check_ray(options: argparse.Namespace) -> RayArguments | None:
    """Check the flags; None for a run without Ray.

    Raises:
        BadUsage: a flag is wrong, or makes no sense without the others.
    """
    if not options.ray:
        for flag in ("address", "replicas", "gpus_per_replica", "cpus_per_replica"):
            if getattr(options, flag) is not None:
                raise BadUsage(f"--{flag.replace('_', '-')}: needs --ray")
        return None
    if options.endpoint is not None:
        raise BadUsage("--ray: starts engines of its own; leave --endpoint away")
    if options.address is not None and "://" in options.address:
        raise BadUsage(
            f"--address {options.address}: Ray Client is not supported; run the command on a machine of the"
            " cluster with --address auto, or as a job (ray job submit)"
        )
    gpus = options.gpus_per_replica
    if gpus is not None and not (gpus >= 0 and math.isfinite(gpus) and (gpus <= 1 or gpus == int(gpus))):
        raise BadUsage(f"--gpus-per-replica {gpus:g}: must be a whole number, or a part of one GPU")
    if options.cpus_per_replica is not None and options.cpus_per_replica < 1:
        raise BadUsage(f"--cpus-per-replica {options.cpus_per_replica}: must be at least 1")
    least, most = _range(options.replicas or "1")
    return RayArguments(options.address, least, most, gpus, options.cpus_per_replica)


def _range(text: str) -> tuple[int, int]:
    """Read `N` or `N..M`.

    >>> _range("4"), _range("2..16")
    ((4, 4), (2, 16))
    """
    least, dots, most = text.partition("..")
    numbers = (least, most if dots else least)
    if not all(number.isascii() and number.isdigit() and len(number) < 6 for number in numbers):
        raise BadUsage(f"--replicas {text}: write a number, or two with .. between them, 2..16")
    low, high = (int(number) for number in numbers)
    if not 1 <= low <= high <= MOST_REPLICAS:
        raise BadUsage(f"--replicas {text}: must be from 1 to {MOST_REPLICAS}, the smaller number first")
    return low, high

"""All-reduces of hidden states between the GPUs of this machine, with NCCL; a process for each."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from benchmark.gpu.layer import Layer
from benchmark.gpu.machine import Machine
from benchmark.gpu.points import ALL_REDUCE, Point
from benchmark.gpu.timing import Clock, CpuClock, CudaClock


def measure(machine: Machine, layer: Layer, rows: Sequence[int]) -> Iterator[Point]:
    """Time an all-reduce of (rows, hidden) between 2, 4, ... GPUs; of one alone nothing."""
    ranks = 2
    while ranks <= machine.count:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (ranks, folder, machine.device.type, layer.hidden, tuple(rows))
            torch.multiprocessing.spawn(_rank, arguments, nprocs=ranks)
            seconds = json.loads((Path(folder) / "seconds.json").read_text())
        yield from (
            Point(ALL_REDUCE, s, rows=count, ranks=ranks) for count, s in zip(rows, seconds, strict=True)
        )
        ranks *= 2


def _rank(rank: int, ranks: int, folder: str, kind: str, hidden: int, rows: tuple[int, ...]) -> None:
    """One rank's process; the first one writes the times."""
    clock: Clock
    if kind == "cuda":
        device, dtype, backend = torch.device("cuda", rank), torch.bfloat16, "nccl"
        torch.cuda.set_device(device)
        clock = CudaClock(device)
    else:
        device, dtype, backend, clock = torch.device("cpu"), torch.float32, "gloo", CpuClock()
    torch.distributed.init_process_group(
        backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks
    )
    try:
        ones = torch.ones(8, dtype=dtype, device=device)
        torch.distributed.all_reduce(ones)
        if not bool((ones == ranks).all()):
            raise RuntimeError(f"an all-reduce of ones between {ranks} ranks gives {ones.tolist()}")
        seconds = []
        for count in rows:
            state = torch.zeros(count, hidden, dtype=dtype, device=device)
            seconds.append(clock.seconds(lambda state=state: torch.distributed.all_reduce(state)))  # type: ignore[misc]
        if rank == 0:
            (Path(folder) / "seconds.json").write_text(json.dumps(seconds))
    finally:
        torch.distributed.destroy_process_group()

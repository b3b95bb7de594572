"""The device that is measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from benchmark.gpu.green_contexts import NotDivided, divide
from benchmark.gpu.timing import Clock, CpuClock, CudaClock, Streams

from sglang.batch.usage import BadUsage

NO_GPU = "no NVIDIA GPU: PyTorch sees no CUDA device here; --device cpu only tries the kit itself"


@dataclass(frozen=True, slots=True)
class Machine:
    """A device and its clock.

    Attributes:
        name: as the driver reports it.
        memory: bytes.
        multiprocessors, compute_capability: of a GPU; 0 on a CPU.
        count: devices of this kind.
        dtype: of weights, activations and KV cache.
    """

    device: torch.device
    clock: Clock
    name: str
    memory: float
    multiprocessors: int
    compute_capability: float
    count: int
    dtype: torch.dtype

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def streams(self, compute_sms: int = 0, memory_sms: int = 0) -> Streams:
        """Two streams, each on all SMs or on so many of its own.

        Raises:
            NotDivided: the SMs cannot be divided; the message says why.
        """
        if compute_sms:
            if not self.is_gpu:
                raise NotDivided("a CPU has no SMs")
            return divide(compute_sms, memory_sms, self.device.index or 0)
        return (torch.cuda.Stream(), torch.cuda.Stream()) if self.is_gpu else (None, None)


def find_machine(device: str) -> Machine:
    """The first GPU, or the CPU.

    Args:
        device: "cuda" or "cpu".

    Raises:
        BadUsage: there is no GPU.
    """
    if device == "cpu":
        return Machine(torch.device("cpu"), CpuClock(), "this CPU", 1e9, 0, 0.0, count=2, dtype=torch.float32)
    if not torch.cuda.is_available() or torch.version.hip:
        raise BadUsage(NO_GPU)
    found = torch.device("cuda", 0)
    told = torch.cuda.get_device_properties(found)
    return Machine(
        found,
        CudaClock(found),
        told.name,
        float(told.total_memory),
        told.multi_processor_count,
        told.major + told.minor / 10,
        count=torch.cuda.device_count(),
        dtype=torch.bfloat16,
    )

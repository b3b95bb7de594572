"""What is simulated, from the environment: the one channel that reaches every process of an engine."""

from __future__ import annotations

import os
from dataclasses import dataclass

from sglang.srt.blend.core.cost.engines import load_engine
from sglang.srt.blend.core.cost.hardware import Hardware, load_hardware

HARDWARE = "SGLANG_SIMULATED_GPU"
ENGINE = "SGLANG_SIMULATED_GPU_ENGINE"
TENSOR_PARALLEL = "SGLANG_SIMULATED_GPU_TP"
STEP_LOG = "SGLANG_SIMULATED_GPU_STEPS"


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """The simulated device.

    Attributes:
        hardware: the GPU; its memory decides the KV capacity.
        engine: alternating, mixed, pdmux or overlapped; "" follows --enable-mixed-chunk.
        tensor_parallel: GPUs that one scheduler process stands for; every rank would do the same.
        step_log: file that gets one line of JSON per step, "" for none.
    """

    hardware: Hardware
    engine: str = ""
    tensor_parallel: int = 1
    step_log: str = ""

    @classmethod
    def from_environment(cls) -> SimulationSettings:
        """Read the variables named above; the default GPU is an A100 with 80 GB.

        Raises:
            ValueError: an unknown GPU or engine, or an impossible number of them.
        """
        engine = os.environ.get(ENGINE, "")
        if engine:
            load_engine(engine)
        degree = os.environ.get(TENSOR_PARALLEL, "1")
        if not degree.isdecimal() or int(degree) < 1:
            raise ValueError(f"{TENSOR_PARALLEL}={degree}: must be a number of GPUs, 1 or more")
        hardware = load_hardware(os.environ.get(HARDWARE, "a100-80gb"))
        return cls(hardware, engine, int(degree), os.environ.get(STEP_LOG, ""))

    def engine_for(self, *, mixed_chunk: bool) -> str:
        """The engine to model, given whether passes may hold prefill and decode together.

        Raises:
            ValueError: passes hold both and the engine asked for cannot.
        """
        if not self.engine:
            return "mixed" if mixed_chunk else "alternating"
        if mixed_chunk and self.engine == "alternating":
            raise ValueError(
                f"{ENGINE}=alternating: passes of prefill and decode do not mix in this engine; "
                "drop --enable-mixed-chunk"
            )
        return self.engine

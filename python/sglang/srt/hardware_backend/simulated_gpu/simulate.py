"""Run a workload through SGLang's scheduler on a simulated GPU and see how long it would have taken."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.pool.workload import Workload
from sglang.srt.hardware_backend.simulated_gpu import lone_scheduler
from sglang.srt.hardware_backend.simulated_gpu.simulated_scheduler import queue_kept, simulated_scheduler
from sglang.srt.hardware_backend.simulated_gpu.step_log import StepLog

if TYPE_CHECKING:
    from sglang.srt.hardware_backend.simulated_gpu.device import SimulatedDevice
    from sglang.srt.managers.scheduler import Scheduler

_REORDERED = ("dfs", "random")
_STANDSTILL = 1000
"""Turns without a batch after which no batch will come: nothing changes between them."""


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What a schedule did and cost.

    Attributes:
        seconds: modelled time of all steps; no wall time is in it.
        python_seconds: CPU time of scheduling on this machine: planning, radix tree, batches, bookkeeping.
        kv_capacity: tokens.
        prompt_tokens, output_tokens: of the workload.
        prefill_tokens: prompt tokens computed, recomputation after retractions included.
        retractions: times that a running request lost its KV.
        steps: one row per forward pass.
        finished: (n,) modelled second at which each request of the workload ended.
    """

    policy: str
    engine: str
    seconds: float
    python_seconds: float
    kv_capacity: int
    prompt_tokens: int
    output_tokens: int
    prefill_tokens: int
    retractions: int
    steps: StepLog
    finished: NDArray[np.float64]

    @property
    def throughput(self) -> float:
        """Processed tokens per second, shared ones included (the paper's measure)."""
        return (self.prompt_tokens + self.output_tokens) / self.seconds

    @property
    def sharing(self) -> float:
        """Share of prompt tokens that were not computed."""
        return 1.0 - self.prefill_tokens / self.prompt_tokens


def simulate(
    workload: Workload,
    *,
    policy: str,
    engine: str,
    hardware: str,
    model_config: Mapping[str, Any],
    tensor_parallel: int = 1,
    seed: int = 0,
    **server_args: Any,
) -> SimulationResult:
    """Submit a whole workload, then step the scheduler until all is answered.

    The scheduler learns prompts and max_new_tokens; the true output length only of requests that are
    `known`, by ignore_eos. The device ends the others.

    Args:
        policy: any --schedule-policy, or "dfs" / "random": first come first served after sorting the
            prompts depth-first / shuffling them.
        engine: alternating, mixed, pdmux or overlapped.
        hardware: profile name or TOML file.
        model_config: a Hugging Face config with an eos_token_id.
        tensor_parallel: GPUs that share the model.
        seed: of "random" and of the blend planner.
        server_args: further fields of upstream's ServerArgs (chunked_prefill_size, mem_fraction_static, ...).

    Raises:
        RuntimeError: this process runs on another platform, or requests were not answered in full.
    """
    answers = _Answers(workload)
    with simulated_scheduler(
        model_config,
        hardware=hardware,
        engine=engine,
        on_finish=lambda rid, reason, tokens: answers.note(rid, reason, tokens, second=device.clock),
        tensor_parallel=tensor_parallel,
        **_server_args(workload, policy, engine, hardware, seed) | server_args,
    ) as scheduler:
        device = _device(scheduler, workload)
        _submit(scheduler, workload, submission_order(workload, policy, seed))
        python_seconds = _run(scheduler, device)
        answers.check()
        return SimulationResult(
            policy=policy,
            engine=engine,
            seconds=device.clock,
            python_seconds=python_seconds,
            kv_capacity=scheduler.max_total_num_tokens,
            prompt_tokens=len(workload.tokens),
            output_tokens=int(workload.output.sum(dtype=np.int64)),
            prefill_tokens=round(device.steps["prefill_tokens"].sum()),
            retractions=device.retractions,
            steps=device.steps,
            finished=answers.finished,
        )


def _server_args(workload: Workload, policy: str, engine: str, hardware: str, seed: int) -> dict[str, Any]:
    """What upstream's ServerArgs are where the caller does not say."""
    blend = {"blend_hardware": hardware, "blend_engine": engine} if policy == "blend" else {}
    return {
        "schedule_policy": "fcfs" if policy in _REORDERED else policy,
        "context_length": int((workload.prompt + workload.max_new_tokens).max()) + 8,
        "random_seed": seed,
        **({"chunked_prefill_size": -1} if engine == "pdmux" else {}),
        **blend,
    }


class _Answers:
    """When each request of a workload ended, and which of them ended otherwise than the workload says.

    Attributes:
        finished: (n,) modelled second, not-a-number before the end.
    """

    def __init__(self, workload: Workload) -> None:
        self.finished = np.full(len(workload), np.nan)
        self._output = workload.output
        self._wrong: list[str] = []

    def note(self, rid: str, reason: str, tokens: int, *, second: float) -> None:
        """A request has ended with so many output tokens."""
        request = int(rid[1:])
        self.finished[request] = second
        if reason == "abort" or tokens != self._output[request]:
            self._wrong.append(f"{rid}: {reason} after {tokens} of {self._output[request]} tokens")

    def check(self) -> None:
        """Raise RuntimeError unless every answer has its length."""
        missing = np.flatnonzero(np.isnan(self.finished))
        wrong = [*self._wrong, *(f"r{request}: never answered" for request in missing[:8])]
        if wrong:
            raise RuntimeError(f"{len(wrong)} requests were not answered in full: {'; '.join(wrong[:8])}")


def _device(scheduler: Scheduler, workload: Workload) -> SimulatedDevice:
    """The scheduler's device, told the output lengths that the scheduler may not know."""
    from sglang.srt.hardware_backend.simulated_gpu.hooks import device_of

    device = device_of(scheduler.tp_worker)
    device.lengths = {f"r{i}": int(workload.output[i]) for i in np.flatnonzero(~workload.known)}
    return device


def _submit(scheduler: Scheduler, workload: Workload, order: NDArray[np.int64]) -> None:
    """Queue the requests as r0, r1, ... in this order."""
    for request in order.tolist():
        lone_scheduler.submit(
            scheduler,
            f"r{request}",
            workload.prompt_tokens(request),
            max_new_tokens=int(workload.max_new_tokens[request]),
            sampling={"ignore_eos": bool(workload.known[request])},
        )


def _run(scheduler: Scheduler, device: SimulatedDevice) -> float:
    """Step until nothing is left, or nothing moves any more; CPU seconds that it took."""
    from sglang.srt.hardware_backend.simulated_gpu.multiplexed import MultiplexedDevice, run_to_the_end

    begin, idle = time.process_time(), 0
    with queue_kept():
        if isinstance(device, MultiplexedDevice):
            run_to_the_end(scheduler, device)
            return time.process_time() - begin
        while idle < _STANDSTILL and not (idle and scheduler.is_fully_idle()):
            idle = idle + 1 if lone_scheduler.step(scheduler) is None else 0
    return time.process_time() - begin


def submission_order(workload: Workload, policy: str, seed: int) -> NDArray[np.int64]:
    """(n,) requests in the order in which they are queued."""
    if policy == "dfs":
        return workload.depth_first_order()
    if policy == "random":
        return np.random.default_rng(seed).permutation(len(workload))
    return np.arange(len(workload))

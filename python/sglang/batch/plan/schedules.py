"""Simulations of one pool under several policies and engines, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sglang.batch.plan.prompts import PlannedModel
from sglang.batch.plan.timeline import Timeline, timeline
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.pdmux import PdmuxConfig
from sglang.srt.blend.core.cost.step_time import StepWork
from sglang.srt.blend.core.pool.workload import Workload

KILLED = "its process was killed, most likely for want of memory; take fewer --jobs or --simulate-requests"


@dataclass(frozen=True)
class Schedule:
    """A policy on an engine, named as `simulate` names them."""

    policy: str
    engine: str


@dataclass(frozen=True)
class Simulated:
    """What a simulation gave.

    Attributes:
        seconds: simulated seconds until the last answer.
        sharing: share of prompt tokens that came from the cache, 0 to 1.
        retractions: times that a running request lost its KV.
        kv_capacity: tokens.
        python_seconds: CPU time that scheduling took on this machine; not part of `seconds`.
    """

    schedule: Schedule
    seconds: float
    sharing: float
    steps: int
    retractions: int
    kv_capacity: int
    python_seconds: float
    timeline: Timeline


@dataclass(frozen=True)
class NotSimulated:
    """A simulation that failed, and why."""

    schedule: Schedule
    reason: str


@contextmanager
def simulator_processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes on the simulated GPU's platform, a new one for every call.

    Leaving by an exception stops those that run.

    Args:
        jobs: processes at a time.
    """
    before = os.environ.get("SGLANG_PLATFORM")
    os.environ["SGLANG_PLATFORM"] = "simulated_gpu"  # every process gets the environment of the first start
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sglang.batch.plan.preload"])
    executor = ProcessPoolExecutor(
        jobs, mp_context=context, max_tasks_per_child=1, initializer=_die_of_signals
    )
    others = multiprocessing.active_children()
    stopping = threading.Thread(target=executor.shutdown, kwargs={"cancel_futures": True})
    try:
        yield executor
    except BaseException:
        # A process that is stopped may hold the lock of the queue, on which one that starts meanwhile then
        # waits for ever: stop processes until none is left to wait for.
        stopping.start()
        while stopping.is_alive():
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            stopping.join(0.1)
        raise
    else:
        executor.shutdown(cancel_futures=True)
    finally:
        if before is None:
            del os.environ["SGLANG_PLATFORM"]
        else:
            os.environ["SGLANG_PLATFORM"] = before


def _die_of_signals() -> None:
    """Die of ctrl-C without a traceback: it reaches every process of the group."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def simulate_all(
    executor: ProcessPoolExecutor,
    schedules: list[Schedule],
    workload: Workload,
    model: PlannedModel,
    *,
    hardware: str,
    tensor_parallel: int,
    pdmux: PdmuxConfig | None = None,
) -> Iterator[Simulated | NotSimulated]:
    """Simulate the workload under each schedule.

    Args:
        hardware: name of a profile, or its file.
        pdmux: how the pdmux engine divides the GPU; None as SGLang does.
        tensor_parallel: GPUs that share the model.

    Yields:
        One result per schedule, in the order in which they come.
    """
    futures: dict[Future[Simulated], Schedule] = {
        executor.submit(
            _simulate,
            schedule,
            workload,
            model,
            hardware=hardware,
            tensor_parallel=tensor_parallel,
            pdmux=pdmux if schedule.engine == "pdmux" else None,
        ): schedule
        for schedule in schedules
    }
    for future in as_completed(futures):
        schedule = futures[future]
        try:
            yield future.result()
        except BrokenProcessPool:
            yield NotSimulated(schedule, KILLED)
        except (RuntimeError, ValueError, NotImplementedError, KeyError, AttributeError) as error:
            yield NotSimulated(schedule, f"{type(error).__name__}: {error}")


def _simulate(
    schedule: Schedule,
    workload: Workload,
    model: PlannedModel,
    *,
    hardware: str,
    tensor_parallel: int,
    pdmux: PdmuxConfig | None,
) -> Simulated:
    from sglang.srt.blend.runtime.pdmux_config import write_pdmux_config
    from sglang.srt.hardware_backend.simulated_gpu.simulate import simulate

    server = {name: value for name, value in model.server.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        if schedule.engine == "pdmux":
            server["chunked_prefill_size"] = -1
        if pdmux is not None:
            server["pdmux_config_path"] = f"{folder}/pdmux.yaml"
            write_pdmux_config(Path(server["pdmux_config_path"]), pdmux)
        result = simulate(
            workload,
            policy=schedule.policy,
            engine=schedule.engine,
            hardware=hardware,
            model_config=model.config,
            tensor_parallel=tensor_parallel,
            context_length=model.context,
            **server,
        )
    steps = result.steps
    counts = ("prefill_tokens", "decode_rows", "kv_tokens", "prefill_pairs", "finished_prefills")
    return Simulated(
        schedule=schedule,
        seconds=result.seconds,
        sharing=result.sharing,
        steps=len(steps),
        retractions=result.retractions,
        kv_capacity=result.kv_capacity,
        python_seconds=result.python_seconds,
        timeline=timeline(
            steps["seconds"],
            StepWork(**{name: np.asarray(steps[name]) for name in counts}),
            model.shape(tensor_parallel),
            load_hardware(hardware),
        ),
    )

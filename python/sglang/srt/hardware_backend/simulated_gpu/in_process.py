"""A real SGLang scheduler in this process, without ZeroMQ, tokenizer or other processes.

Upstream's own intake, queue, policy, radix cache, allocator and result processing run in upstream's
order; only where outputs would be sent away, they are dropped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sglang.srt.hardware_backend.simulated_gpu import settings
from sglang.srt.hardware_backend.simulated_gpu.activation import PLATFORM_NAME

_NEVER = 1e9
"""Seconds. Upstream's watchdog sends SIGQUIT to the parent of a process whose scheduler stands still: here
that is somebody's shell or make, and a scheduler that nobody steps any more is no failure."""

OnFinish = Callable[[str, str, int], None]
"""Called with request id, type of finish reason and number of output tokens."""


@contextlib.contextmanager
def scheduler(
    config: Mapping[str, Any],
    *,
    hardware: str,
    engine: str,
    on_finish: OnFinish,
    tensor_parallel: int = 1,
    **server_args: Any,
) -> Iterator[Any]:
    """Build a scheduler on a simulated GPU.

    One at a time: upstream keeps the parallel state and the platform of a process in globals, so the
    platform must not have been resolved to another one before.

    Args:
        config: the model's Hugging Face config.json.
        hardware: profile name or TOML file; engine: as in `core.engines`.
        tensor_parallel: GPUs that the one scheduler stands for.
        server_args: fields of upstream's ServerArgs.

    Raises:
        RuntimeError: this process runs on another platform already.
    """
    environment = {
        "SGLANG_PLATFORM": PLATFORM_NAME,
        settings.HARDWARE: hardware,
        settings.ENGINE: engine,
        settings.TENSOR_PARALLEL: str(tensor_parallel),
        settings.STEP_LOG: "",
    }
    with _environment(environment), tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(dict(config)))
        built = _build(folder, server_args)
        _drop_outputs(built, on_finish)
        _drop_load_reports(built)
        try:
            yield built
        finally:
            from sglang.srt.distributed.parallel_state import (
                destroy_distributed_environment,
                destroy_model_parallel,
            )

            destroy_model_parallel()
            destroy_distributed_environment()


def submit(scheduler: Any, rid: str, tokens: Any, *, max_new_tokens: int, ignore_eos: bool) -> None:
    """Queue one request, as upstream's tokenizer manager would.

    Args:
        tokens: prompt token ids, an int array.
    """
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0, ignore_eos=ignore_eos)
    params.normalize(None)
    request = TokenizedGenerateReqInput(
        rid=rid,
        input_text=None,
        input_ids=array("q", tokens),
        sampling_params=params,
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
    )
    scheduler.process_input_requests([request])


@contextlib.contextmanager
def queue_kept() -> Iterator[None]:
    """The garbage collector leaves alone what exists: a look at 40,000 requests takes a second each time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def step(scheduler: Any) -> bool:
    """One turn of upstream's event loop without overlap scheduling; whether a batch ran."""
    plan = scheduler.get_next_batch_to_run(
        running_batch=scheduler.running_batch, last_batch=scheduler.last_batch
    )
    scheduler.running_batch = plan.running_batch
    batch = plan.batch_to_run
    scheduler.cur_batch_for_debug = batch
    if batch:
        scheduler.process_batch_result(batch, scheduler.run_batch(batch))
    else:
        scheduler.on_idle()
    scheduler.last_batch = batch
    return batch is not None


def _build(folder: str, server_args: Mapping[str, Any]) -> Any:
    from sglang.srt.hardware_backend.simulated_gpu.srt_platform import SimulatedGpuPlatform
    from sglang.srt.platforms import current_platform

    if not isinstance(current_platform, SimulatedGpuPlatform):
        raise RuntimeError(
            f"this process has already chosen the platform {current_platform.device_name!r}; simulate in a "
            f"process of its own, or start it with SGLANG_PLATFORM={PLATFORM_NAME}"
        )
    from sglang.srt.blend.runtime.plugin import ensure_registered
    from sglang.srt.distributed import bootstrap
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.plugins import load_plugins
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import PortArgs

    load_plugins()
    ensure_registered()
    defaults = {
        "model_path": folder,
        "device": "cpu",
        "skip_tokenizer_init": True,
        "disable_overlap_schedule": True,
        "sampling_backend": "pytorch",
        "log_level": "error",
        "random_seed": 0,
        "watchdog_timeout": _NEVER,
    }
    args = Engine.server_args_class(**(defaults | dict(server_args)))
    args.resolve_once()
    args.check_server_args()
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    bootstrap._PARALLEL_INITIALISED = False
    built = Scheduler(args, PortArgs.init_new(args))
    built.idle_sleeper = None  # it would wait for ZeroMQ messages
    return built


def _drop_outputs(scheduler: Any, on_finish: OnFinish) -> None:
    def deliver(payload: Any, *_: Any) -> None:
        rids = getattr(payload, "rids", None)
        if rids is None:
            if getattr(payload, "rid", None) is not None:
                on_finish(payload.rid, "abort", 0)
            return
        for rid, reason, tokens in zip(
            rids, payload.finished_reasons, payload.completion_tokens, strict=True
        ):
            if reason is not None:
                on_finish(rid, reason["type"], tokens)

    scheduler.ipc_channels.send_to_detokenizer.send_output = deliver
    scheduler.ipc_channels.send_to_tokenizer.send_output = deliver


def _drop_load_reports(scheduler: Any) -> None:
    """Nobody listens to load reports here, and upstream walks the whole queue for each."""
    scheduler.publish_load_snapshot = lambda *_, **__: None
    scheduler.load_publisher.publish_load_stat = lambda *_, **__: None
    scheduler.load_inquirer = dataclasses.replace(scheduler.load_inquirer, get_waiting_queue=list)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

"""One of upstream's schedulers in this process, without ZeroMQ, tokenizer or other processes.

Upstream's own intake, queue, policy, radix cache, allocator and result processing run in upstream's order,
on whatever platform the process has. What would be sent away goes to a function of the caller's.
"""

from __future__ import annotations

import contextlib
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.server_args import PortArgs, ServerArgs

_NEVER = 1e9
"""Seconds. Upstream's watchdog sends SIGQUIT to the parent of a process whose scheduler stands still: here
that is somebody's shell or make, and a scheduler that nobody steps any more is no failure."""

Deliver = Callable[[Any], None]
"""Takes what the scheduler would send to the detokenizer or to the tokenizer manager."""


@contextlib.contextmanager
def lone_scheduler(model_path: Path | str, deliver: Deliver, **server_args: Any) -> Iterator[Scheduler]:
    """Build a scheduler and tear it down; one at a time, because upstream keeps parallel state in globals.

    Args:
        model_path: folder with the model's config.json, and its weights where the platform loads any.
        server_args: fields of upstream's ServerArgs; without others no step overlaps with the next.
    """
    from sglang.srt.blend.runtime.plugin import ensure_registered
    from sglang.srt.distributed import bootstrap
    from sglang.srt.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.eplb.expert_location import set_global_expert_location_metadata
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.plugins import load_plugins
    from sglang.srt.runtime_context import SpawnRanks, publish

    load_plugins()
    ensure_registered()
    defaults = {
        "model_path": str(model_path),
        "device": "cpu",
        "skip_tokenizer_init": True,
        "disable_overlap_schedule": True,
        "sampling_backend": "pytorch",
        "log_level": "error",
        "random_seed": 0,
        "watchdog_timeout": _NEVER,
    }
    args = Engine.server_args_class(**(defaults | server_args))
    args.resolve_once()
    args.check_server_args()
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    bootstrap._PARALLEL_INITIALISED = False
    set_global_expert_location_metadata(None, allow_overwrite=True)  # those of the one before
    try:
        scheduler = Scheduler(args, choose_ports(args))
        scheduler.idle_sleeper = None  # it would wait for ZeroMQ messages
        channels = scheduler.ipc_channels
        for channel in (channels.send_to_detokenizer, channels.send_to_tokenizer):
            channel.send_output = lambda payload, *_: deliver(payload)
        try:
            yield scheduler
        finally:
            # Collected as garbage, it would wait until somebody has read what was sent.
            channels.recv_from_tokenizer.context.destroy(linger=0)
    finally:
        destroy_model_parallel()
        destroy_distributed_environment()


def choose_ports(args: ServerArgs) -> PortArgs:
    """Ports and names for a scheduler.

    Upstream draws the port of ``torch.distributed`` from ``random``, which schedulers seed with
    ``random_seed``: two processes that each build one would draw the same port at the same moment.
    """
    from sglang.srt.server_args import PortArgs

    state = random.getstate()
    random.seed()
    try:
        return PortArgs.init_new(args)
    finally:
        random.setstate(state)


def submit(
    scheduler: Scheduler,
    rid: str,
    tokens: Iterable[int],
    *,
    max_new_tokens: int,
    sampling: Mapping[str, Any] | None = None,
    **request: Any,
) -> None:
    """Queue one request, as upstream's tokenizer manager would; it is answered greedily.

    Args:
        tokens: prompt token ids.
        sampling: further fields of upstream's SamplingParams (ignore_eos, json_schema, ...).
        request: further fields of upstream's TokenizedGenerateReqInput (priority, extra_key, ...).
    """
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0, **(sampling or {}))
    params.normalize(None)
    defaults = {
        "return_logprob": False,
        "logprob_start_len": -1,
        "top_logprobs_num": 0,
        "token_ids_logprob": None,
        "stream": False,
        "input_embeds": None,
        "mm_inputs": None,
        "token_type_ids": None,
    }
    fields = defaults | request
    received = TokenizedGenerateReqInput(
        rid=rid, input_text=None, input_ids=array("q", tokens), sampling_params=params, **fields
    )
    scheduler.process_input_requests([received])


def step(scheduler: Scheduler) -> ScheduleBatch | None:
    """One turn of upstream's event loop, normal or overlapped; the batch that it launched."""
    plan = scheduler.get_next_batch_to_run(
        running_batch=scheduler.running_batch, last_batch=scheduler.last_batch
    )
    scheduler.running_batch = plan.running_batch
    batch = plan.batch_to_run
    scheduler.cur_batch_for_debug = batch
    if scheduler.enable_overlap:
        _overlapped(scheduler, batch)
    elif batch:
        scheduler.process_batch_result(batch, scheduler.run_batch(batch))
    else:
        scheduler.on_idle()
    scheduler.last_batch = batch
    return batch


def _overlapped(scheduler: Scheduler, batch: ScheduleBatch | None) -> None:
    """Launch a batch before the result of the one before it is processed."""
    alone = scheduler.is_disable_overlap_for_batch(batch, last_batch=scheduler.last_batch)
    if alone:
        scheduler.process_batch_result(*scheduler.result_queue.popleft())
    result = None
    if batch:
        result = scheduler.run_batch(batch)
        scheduler.result_queue.append((batch.copy(), result))
    if scheduler.last_batch:
        if not alone:
            scheduler.process_batch_result(*scheduler.result_queue.popleft())
    elif batch is None:
        scheduler.on_idle()
    if scheduler.is_generation:
        scheduler.launch_batch_sample_if_needed(result, batch)

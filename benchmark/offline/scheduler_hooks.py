"""Hooks in the scheduler of a measured engine: a log of its steps, answers of fixed length, what it holds.

They cost microseconds per step and are the same for every policy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np

from sglang.srt.blend.runtime import installer
from sglang.srt.blend.runtime.installer import Hook, HookType

OUTPUT_TOKENS = "benchmark_output_tokens"
"""Key in a request's ``custom_params``: after how many tokens its answer ends. No policy looks there, so a
length is as unknown to it as with a model that decides by itself."""

_INTERNAL_STATE = "sglang.srt.managers.scheduler_components.internal_state"


def run_scheduler(log: str, *args: Any, **kwargs: Any) -> Any:
    """Upstream's scheduler process with the hooks; `log` is the file of the steps."""
    from sglang.srt.managers.scheduler import run_scheduler_process

    installer.install(hooks(log), "this SGLang cannot be measured: {target} could not be hooked")
    return run_scheduler_process(*args, **kwargs)


def hooks(log: str) -> tuple[Hook, ...]:
    """All hooks; the file `log` stays open as long as the process lives."""
    steps = StepLog(open(log, "a", buffering=1))  # noqa: SIM115
    return (
        Hook(
            "sglang.srt.managers.scheduler.Scheduler.run_batch",
            steps.note,
            HookType.BEFORE,
            "upstream logs no line for every step",
        ),
        Hook(
            "sglang.srt.managers.schedule_batch.Req.update_finish_state",
            end_answer,
            HookType.AROUND,
            "a random model ends no answer where the workload says",
        ),
        Hook(
            f"{_INTERNAL_STATE}.SchedulerInternalStateController.get_internal_state",
            tell_held_tokens,
            HookType.AFTER,
            "upstream tells how large its KV pool is, but not what is left of it",
        ),
    )


def end_answer(original: Callable[..., Any], req: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``Req.update_finish_state``: the answer ends where the workload says, and nowhere else."""
    params = req.sampling_params
    length = (params.custom_params or {}).get(OUTPUT_TOKENS)
    if length is None:
        return original(req, *args, **kwargs)
    seen = params.max_new_tokens, params.ignore_eos
    params.max_new_tokens, params.ignore_eos = length, True
    try:
        return original(req, *args, **kwargs)
    finally:
        params.max_new_tokens, params.ignore_eos = seen


def tell_held_tokens(output: Any, controller: Any, *_: Any, **__: Any) -> Any:
    """After ``get_internal_state``: add the KV tokens that are neither free nor cached."""
    stats = controller.scheduler.pool_stats_observer.get_pool_stats()
    output.internal_state["kv_tokens_held"] = stats.full_num_used
    return output


class StepLog:
    """One JSON list per step: when it began, prefill tokens, decode rows."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def note(self, _scheduler: Any, batch: Any, *_: Any, **__: Any) -> None:
        began = time.perf_counter()
        if batch.forward_mode.is_extend():
            decoding = len(batch.decoding_reqs or ())
            row = [began, batch.extend_num_tokens - decoding, decoding]
        else:
            row = [began, 0, len(batch.reqs)]
        self._file.write(json.dumps(row) + "\n")


def summarise_steps(lines: list[str]) -> dict[str, float]:
    """What the steps of one run did, from its lines of the log.

    A step lasts until the next begins, so the last one counts no time.

    Returns:
        steps, prefill_steps, mixed_steps: all, those with prompts only, those with decode rows too.
        prefill_tokens: computed, recomputed ones included.
        rows_per_decode: mean batch of the steps that decode.
        prefill_tokens_per_second: over the steps with prompts only.
        decode_step_ms: median of the steps without prompts.
    """
    steps = np.array([json.loads(line) for line in lines], np.float64).reshape(-1, 3)
    began, prefill, rows = steps.T
    seconds = np.append(np.diff(began), 0.0)
    only_prefill, only_decode = (prefill > 0) & (rows == 0), prefill == 0
    decodes = np.count_nonzero(rows)
    prefill_seconds = float(seconds[only_prefill].sum())
    return {
        "steps": len(steps),
        "prefill_steps": int(only_prefill.sum()),
        "mixed_steps": int(((prefill > 0) & (rows > 0)).sum()),
        "prefill_tokens": int(prefill.sum()),
        "rows_per_decode": round(float(rows.sum()) / decodes, 2) if decodes else 0.0,
        "prefill_tokens_per_second": round(float(prefill[only_prefill].sum()) / prefill_seconds, 1)
        if prefill_seconds
        else 0.0,
        "decode_step_ms": round(1e3 * float(np.median(seconds[:-1][only_decode[:-1]])), 2)
        if only_decode[:-1].any()
        else 0.0,
    }

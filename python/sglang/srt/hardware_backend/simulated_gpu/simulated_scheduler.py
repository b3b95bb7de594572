"""A lone scheduler on a simulated GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.srt.hardware_backend.simulated_gpu import settings
from sglang.srt.hardware_backend.simulated_gpu.activation import PLATFORM_NAME
from sglang.srt.hardware_backend.simulated_gpu.lone_scheduler import lone_scheduler

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler

OnFinish = Callable[[str, str, int], None]
"""Called with request id, type of finish reason and number of output tokens."""


@contextlib.contextmanager
def simulated_scheduler(
    config: Mapping[str, Any],
    *,
    hardware: str,
    engine: str,
    on_finish: OnFinish,
    tensor_parallel: int = 1,
    **server_args: Any,
) -> Iterator[Scheduler]:
    """Build a scheduler on a simulated GPU; its outputs are dropped.

    One at a time. A process has one platform, so it must not have been resolved to another one before.

    Args:
        config: the model's Hugging Face config.json.
        hardware: profile name or TOML file.
        engine: alternating, mixed, pdmux or overlapped.
        on_finish: told of every answer that has ended.
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
        _require_platform()
        (Path(folder) / "config.json").write_text(json.dumps(dict(config)))
        with lone_scheduler(
            folder, lambda payload: _report_finished(on_finish, payload), **server_args
        ) as scheduler:
            _drop_load_reports(scheduler)
            yield scheduler


@contextlib.contextmanager
def queue_kept() -> Iterator[None]:
    """The garbage collector leaves alone what exists: a look at 40,000 requests takes a second each time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _require_platform() -> None:
    from sglang.srt.hardware_backend.simulated_gpu.srt_platform import SimulatedGpuPlatform
    from sglang.srt.platforms import current_platform

    if not isinstance(current_platform, SimulatedGpuPlatform):
        raise RuntimeError(
            f"this process has already chosen the platform {current_platform.device_name!r}; simulate in a "
            f"process of its own, or start it with SGLANG_PLATFORM={PLATFORM_NAME}"
        )


def _report_finished(on_finish: OnFinish, payload: Any) -> None:
    rids = getattr(payload, "rids", None)
    if rids is None:
        if getattr(payload, "rid", None) is not None:
            on_finish(payload.rid, "abort", 0)
        return
    for rid, reason, tokens in zip(rids, payload.finished_reasons, payload.completion_tokens, strict=True):
        if reason is not None:
            on_finish(rid, reason["type"], tokens)


def _drop_load_reports(scheduler: Scheduler) -> None:
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

"""Where upstream would touch weights or a GPU, we answer instead. Every hook of the simulated GPU.

The platform's own seams do the rest: `init_backend` and `post_load_model` install the two tables below at
the moments when what they replace has been imported and not yet run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sglang.srt.blend.core.cost.kv_capacity import kv_cache_bytes
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.pdmux import PdmuxConfig
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.runtime import installer
from sglang.srt.blend.runtime.installer import Hook, HookType
from sglang.srt.blend.runtime.model_config import config_dict
from sglang.srt.blend.runtime.pdmux_config import read_pdmux_config
from sglang.srt.hardware_backend.simulated_gpu.settings import SimulationSettings

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.hardware_backend.simulated_gpu.device import SimulatedDevice
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.tp_worker import TpModelWorker
    from sglang.srt.managers.utils import GenerationBatchResult
    from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator
    from sglang.srt.model_executor.model_runner import ModelRunner


class NoModel(torch.nn.Module):
    """Stands where the model's weights would be."""


def shape_of(model_config: ModelConfig, *, tensor_parallel: int, kv_dtype: str) -> ModelShape:
    """The cost model's view of one rank's share; `kv_dtype` as in --kv-cache-dtype."""
    return ModelShape.from_config(
        config_dict(model_config), tensor_parallel=tensor_parallel, kv_dtype=kv_dtype
    )


def device_of(worker: TpModelWorker) -> SimulatedDevice:
    """The simulated device of a TpModelWorker, made at its first use."""
    device = getattr(worker, "simulated_device", None)
    if device is None:
        device = worker.simulated_device = _make_device(worker)
    return device


def _make_device(worker: TpModelWorker) -> SimulatedDevice:
    from sglang.srt.hardware_backend.simulated_gpu.device import SimulatedDevice
    from sglang.srt.hardware_backend.simulated_gpu.multiplexed import MultiplexedDevice

    settings = SimulationSettings.from_environment()
    args, config = worker.server_args, worker.model_config
    degree = max(args.tp_size, settings.tensor_parallel)
    times = StepTimeModel(
        shape_of(config, tensor_parallel=degree, kv_dtype=args.kv_cache_dtype), settings.hardware
    )
    engine = settings.engine_for(mixed_chunk=args.enable_mixed_chunk)
    common: dict[str, Any] = {"end_tokens": config.hf_eos_token_id or (), "step_log": settings.step_log}
    if engine != "pdmux":
        return SimulatedDevice(times, engine, **common)
    divided = PdmuxConfig.of(settings.hardware, read_pdmux_config(args.pdmux_config_path))
    return MultiplexedDevice(times, divided, **common)


def _load_nothing(_loader: Any, *, model_config: Any, device_config: Any) -> torch.nn.Module:
    return NoModel()


def _no_runners(runner: ModelRunner, capture_decode_cuda_graph: bool = True) -> None:
    runner.eager_runner = runner.prefill_cuda_graph_runner = runner.decode_cuda_graph_runner = None
    runner.decode_cuda_graph_captured = False
    runner.decode_cuda_graph_capture_bs = []
    runner.graph_memory_usage, runner.graph_time_usage = {}, {}


def _simulated_kv_bytes(configurator: KVCacheConfigurator, pre_model_load_memory: int) -> int:
    """Bytes for the KV cache: the GPU's static part less the weights of one rank.

    Where one process stands for several ranks, its tokens are as large as theirs together.
    """
    from sglang.srt.runtime_context import get_parallel, get_schedule

    settings, ranks = SimulationSettings.from_environment(), get_parallel().tp_size
    hardware, degree = settings.hardware, max(ranks, settings.tensor_parallel)
    fraction = get_schedule().mem_fraction_static
    shape, seen = (
        shape_of(configurator.model_config, tensor_parallel=n, kv_dtype="auto") for n in (degree, ranks)
    )
    free = kv_cache_bytes(shape, hardware, fraction)
    if free <= 0:
        raise ValueError(
            f"a simulated {hardware.name} cannot hold the weights: {shape.weight_bytes / 1e9:.1f} GB per "
            f"rank of {hardware.memory * fraction / 1e9:.1f} GB; use more tensor-parallel ranks or a larger "
            "GPU"
        )
    return int(free * (seen.kv_bytes / shape.kv_bytes))


def _forward(worker: TpModelWorker, batch: ScheduleBatch, *_: Any, **__: Any) -> GenerationBatchResult:
    return device_of(worker).forward(batch)


def _forward_split(worker: TpModelWorker, batch: ScheduleBatch) -> GenerationBatchResult:
    return device_of(worker).forward_split_prefill(batch)


def _report_clock(output: Any, scheduler: Scheduler, *_: Any, **__: Any) -> None:
    device = device_of(scheduler.tp_worker)
    output.internal_state["simulated_gpu"] = {
        "hardware": device.model.hardware.name,
        "engine": device.engine,
        **device.steps.totals(),
    }


LOADING_HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.model_loader.loader.DummyModelLoader.load_model",
        _load_nothing,
        HookType.REPLACE,
        "architecture and weights are never looked at, only the config",
    ),
)

EXECUTION_HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._profile_available_bytes",
        _simulated_kv_bytes,
        HookType.REPLACE,
        "the KV cache is sized by the simulated GPU",
    ),
    Hook(
        "sglang.srt.managers.tp_worker.TpModelWorker.forward_batch_generation",
        _forward,
        HookType.REPLACE,
        "batches run on the simulated device",
    ),
    Hook(
        "sglang.srt.managers.tp_worker.TpModelWorker.forward_batch_split_prefill",
        _forward_split,
        HookType.REPLACE,
        "the layers of a prefill batch run there too, under PD multiplexing",
    ),
    Hook(
        "sglang.srt.model_executor.model_runner.ModelRunner.init_cuda_graphs",
        _no_runners,
        HookType.REPLACE,
        "neither graphs nor warm-up: there is no forward pass to prepare",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.get_internal_state",
        _report_clock,
        HookType.AFTER,
        "the clock and the totals in get_server_info, under 'simulated_gpu'",
    ),
)

HOOKS = LOADING_HOOKS + EXECUTION_HOOKS


def install(table: tuple[Hook, ...]) -> None:
    """Put hooks in place.

    Raises:
        RuntimeError: naming what this SGLang lacks.
    """
    installer.install(table, "the simulated GPU cannot run on this SGLang: {target} could not be replaced")

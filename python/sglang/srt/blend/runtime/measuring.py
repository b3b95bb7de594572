"""Whether a scheduler's steps are measured, and what of it a correction reaches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from sglang.srt.blend.core.cost.correction import AS_TOLD, Correction
from sglang.srt.blend.core.cost.step_fit import StepFit
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.step.outlook import PoolClock
from sglang.srt.blend.core.step.pacing import Pace
from sglang.srt.blend.runtime.arguments import attention_groups, get_options
from sglang.srt.blend.runtime.device_speed import correction_at_start
from sglang.srt.blend.runtime.measured_hardware import MeasuredHardware
from sglang.srt.runtime_context import get_disagg, get_parallel

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler

logger = logging.getLogger(__name__)

MakePacer = Callable[[StepTimeModel, str, int], Pace | None]
"""Makes what spreads prefill, from step times, engine and KV tokens."""


def measurable(scheduler: Scheduler, engine: str) -> bool:
    """Whether a pass is what `StepTimeModel` models, alone on its devices, and its time shows them.

    Not with drafts, nor on a GPU that is divided, nor where ranks run different batches or layers.
    """
    return (
        engine != "pdmux"
        and scheduler.spec_algorithm.is_none()
        and get_disagg().disaggregation_mode == "null"
        and get_parallel().pp_size == 1
        and attention_groups(scheduler.server_args) == 1
    )


def measure(
    scheduler: Scheduler, planner: Planner, clock: PoolClock | None, make_pacer: MakePacer
) -> MeasuredHardware | None:
    """What corrects costs, pace and clock by step times; None where it is off or impossible.

    Args:
        clock: models the pool; None where step times cannot be modelled.
    """
    wanted = get_options(scheduler.server_args).measure == "on"
    if clock is None or not wanted or not measurable(scheduler, clock.engine):
        return None
    cost_model, engine, group = planner.cost_model, clock.engine, get_parallel().tp_group

    def adopt(fit: StepFit, correction: Correction) -> None:
        times = fit.times(correction)
        pacer = make_pacer(times, engine, planner.kv_capacity)
        judge = None if planner.judge is None else replace(planner.judge, times=times)
        planner.correct(replace(cost_model, hardware=times.hardware), pacer, judge)
        clock.correct(times)

    def agree(mine: Correction) -> Correction:
        if group.world_size == 1:
            return mine
        said = torch.tensor([mine.compute, mine.memory, mine.overhead, mine.tiled], dtype=torch.float64)
        torch.distributed.broadcast(said, src=group.ranks[0], group=group.cpu_group)
        compute, memory, overhead, tiled = said.tolist()
        return Correction(compute, memory, overhead, bool(tiled))

    fit, decides = StepFit(cost_model.shape, cost_model.hardware, engine), group.rank_in_group == 0
    first = agree(_at_start(scheduler, fit) if decides else AS_TOLD)
    if first != AS_TOLD:
        adopt(fit, first)
        hardware = fit.times(first).hardware
        logger.info(
            "blend: this device does %.3g TFLOP/s and reads %.3g GB/s where %s would have %.3g and %.3g",
            *(hardware.flops / 1e12, hardware.bandwidth / 1e9, hardware.name),
            *(fit.hardware.flops / 1e12, fit.hardware.bandwidth / 1e9),
        )
    return MeasuredHardware(fit, adopt=adopt, agree=agree, decides=decides, correction=first)


def _at_start(scheduler: Scheduler, fit: StepFit) -> Correction:
    """What products and reads on the device itself say of its profile, before there are steps."""
    if simulated_clock(scheduler) is not None:
        return AS_TOLD
    dtype, product = scheduler.model_config.dtype, getattr(_platform(), "product", None)
    try:
        return correction_at_start(fit.times(AS_TOLD), scheduler.device, dtype, product)
    except RuntimeError as error:  # no memory is left for it, or the device lacks an operator
        logger.warning("blend: the device is not timed at start-up: %s", str(error).splitlines()[0])
        return AS_TOLD


def _platform() -> Any:
    """SGLang's platform, with whatever ours have beside its own; None without any."""
    try:
        from sglang.srt.platforms import current_platform
    except ImportError:
        return None
    return current_platform


def simulated_clock(scheduler: Scheduler) -> Callable[[], float] | None:
    """The clock of a platform on which time does not pass by itself, None on others."""
    simulated = getattr(_platform(), "simulated_clock", None)
    return None if simulated is None else simulated(scheduler.tp_worker)

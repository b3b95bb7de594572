"""What happens when a scheduler starts with ``--schedule-policy blend``, and nothing else does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.pdmux import PdmuxConfig, PdmuxTimes
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.core.order.judge import Judge
from sglang.srt.blend.core.order.plan import PlannerOptions
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.step.batch_pacing import BatchPacer
from sglang.srt.blend.core.step.outlook import PoolClock
from sglang.srt.blend.core.step.pacing import Pace, Pacer
from sglang.srt.blend.core.step.step import StepLimits
from sglang.srt.blend.runtime.admission_log import AdmissionLog
from sglang.srt.blend.runtime.arguments import POLICY, BlendOptions, get_options
from sglang.srt.blend.runtime.device import find_hardware
from sglang.srt.blend.runtime.encoder_cost import EncoderCost
from sglang.srt.blend.runtime.measuring import measure, simulated_clock
from sglang.srt.blend.runtime.model_config import config_dict, dtype_name
from sglang.srt.blend.runtime.parts import BlendParts
from sglang.srt.blend.runtime.pdmux_config import read_pdmux_config
from sglang.srt.blend.runtime.policy import BlendSchedulePolicy
from sglang.srt.blend.runtime.pool import RequestPool
from sglang.srt.blend.runtime.prefill_adder import BlendPrefillAdder
from sglang.srt.blend.runtime.prometheus import PrometheusGauges
from sglang.srt.blend.runtime.radix import cache as radix_cache
from sglang.srt.blend.runtime.radix.namespaces import Namespaces
from sglang.srt.blend.runtime.speculation import speculation_of
from sglang.srt.blend.runtime.stopwatch import Stopwatch
from sglang.srt.blend.runtime.switching import WatchedPrefillAdder
from sglang.srt.blend.runtime.warm_up import compile_kernels
from sglang.srt.managers.schedule_policy import PrefillAdder
from sglang.srt.mem_cache.prefill_budget import PrefillBudget
from sglang.srt.runtime_context import get_disagg, get_exec, get_parallel

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler

logger = logging.getLogger(__name__)

SEED = 0
"""Of the sampling: the same on every tensor-parallel rank and in every run."""


def prepare(scheduler: Scheduler) -> None:
    """Before model and cache are built: refuse what cannot work, choose the radix cache."""
    unfit = {
        "--dllm-algorithm (diffusion language models schedule themselves)": get_exec().dllm.dllm_algorithm,
        "--disaggregation-mode decode (it has no prefill to schedule)": get_disagg().disaggregation_mode
        == "decode",
    }
    for what, given in unfit.items():
        if given:
            raise ValueError(f"--schedule-policy {POLICY} does not go with {what}; choose another policy")
    radix_cache.install()


def install_policy(original: Callable[[Scheduler], None], scheduler: Scheduler) -> None:
    """Around ``Scheduler.init_schedule_policy``: upstream's rest runs as if the policy were fcfs."""
    scheduler.schedule_policy = "fcfs"
    try:
        original(scheduler)
    finally:
        scheduler.schedule_policy = POLICY
    scheduler.blend = blend = build(scheduler)
    scheduler.policy = blend.policy
    scheduler.tree_cache.blend_pool = blend.pool
    logger.info(
        "blend: planning for %s, %d KV tokens, cached prefixes %s annotations",
        blend.planner.cost_model.hardware.name,
        blend.planner.kv_capacity,
        "carry" if blend.annotated else "carry no",
    )


def build(scheduler: Scheduler) -> BlendParts:
    """Planner, accounts and policy for a scheduler whose cache exists."""
    options = get_options(scheduler.server_args)
    config = config_dict(scheduler.model_config)
    hardware = find_hardware(options.hardware, scheduler.device)
    cost_model = CostModel(_shape(config, scheduler), hardware)
    capacity = int(scheduler.max_total_num_tokens)
    engine = _engine(scheduler, options.engine)
    times = _step_times(cost_model, engine)
    compile_kernels(cost_model, times)
    planner = Planner(
        cost_model,
        kv_capacity=capacity,
        options=_planner_options(options),
        seed=SEED,
        pacer=None if times is None else _pacer(times, engine, capacity),
        leader_lag=2 if scheduler.enable_overlap else 1,
        speculation=speculation_of(scheduler),
        judge=_judge(times, engine, scheduler.server_args.chunked_prefill_size),
    )
    namespaces = Namespaces()
    pool = RequestPool(
        planner,
        namespaces=namespaces,
        encoder=EncoderCost.from_config(config, hardware.flops),
        priority_sign=_priority_sign(scheduler),
    )
    first_rank = get_parallel().tp_rank == 0
    log = AdmissionLog(options.admission_log if first_rank else None)
    clock = None if times is None else PoolClock(times, engine, capacity, planner.speculation)
    measured = measure(scheduler, planner, clock, _pacer)
    policy = BlendSchedulePolicy(
        pool,
        scheduler.tree_cache,
        scheduler.token_to_kv_pool_allocator,
        limits=_limits(scheduler),
        log=log,
        enable_hierarchical_cache=scheduler.enable_hierarchical_cache,
        enable_priority_scheduling=scheduler.enable_priority_scheduling,
        schedule_low_priority_values_first=scheduler.schedule_low_priority_values_first,
    )
    gauges = None
    if scheduler.metrics_collector is not None:
        gauges = PrometheusGauges(scheduler.metrics_collector.labels)
    blend = BlendParts(
        planner=planner,
        pool=pool,
        policy=policy,
        log=log,
        gauges=gauges,
        adder_class=PrefillAdder,
        watched_adder_class=PrefillAdder,
        annotated=radix_cache.attach_planner(scheduler.tree_cache, planner, cost_model, namespaces),
        clock=clock,
        measured=measured,
        stopwatch=None if measured is None else Stopwatch(measured.add, simulated_clock(scheduler)),
    )
    blend.adder_class = BlendPrefillAdder.bound_to(blend)
    blend.watched_adder_class = WatchedPrefillAdder.bound_to(blend)
    return blend


def _planner_options(options: BlendOptions) -> PlannerOptions:
    return PlannerOptions(
        sample_fraction=options.sample_fraction,
        sharing_budget=options.sharing_budget,
        replan_interval=options.replan_interval,
        window=options.window,
        patience=options.patience,
    )


def _limits(scheduler: Scheduler) -> StepLimits:
    """What upstream's allocator and cache let a step do."""
    allocator, cache = scheduler.token_to_kv_pool_allocator, scheduler.tree_cache
    return StepLimits(
        page_size=scheduler.page_size,
        # Sliding windows and recurrent states have budgets of their own, with which we do not meddle.
        forecasts=type(allocator.create_prefill_budget(cache)) is PrefillBudget
        and not hasattr(allocator, "mamba_slot_full_token_cost"),
        # A state slot taken for a request that is then passed over would not be given back.
        may_defer=not cache.supports_mamba(),
    )


def _engine(scheduler: Scheduler, name: str) -> str:
    """How the engine combines the parts of a step; `auto` looks at its flags.

    Under speculative decoding a step that prefills yields one token of each request, whatever is drafted. So
    prefill is not spread over the steps.
    """
    if name != "auto":
        return name
    spread = scheduler.is_mixed_chunk and scheduler.spec_algorithm.is_none()
    mixed = "mixed" if spread else "alternating"
    return "pdmux" if scheduler.server_args.enable_pdmux else mixed


def _pacer(times: StepTimeModel, engine: str, capacity: int) -> Pace | None:
    """What spreads prefill; None where passes hold prefill or decode alone, or the GPU cannot be divided."""
    if engine == "alternating":
        return None
    if engine != "pdmux":
        return Pacer(times, engine, kv_capacity=capacity)
    path = get_disagg().pdmux_config_path
    try:
        config = PdmuxConfig.of(times.hardware, read_pdmux_config(path))
        return BatchPacer(PdmuxTimes(times), config, kv_capacity=capacity)
    except ValueError as error:
        logger.warning("blend: prefill batches are not fitted to decode steps: %s", error)
        return None


def _judge(times: StepTimeModel | None, engine: str, chunk: int | None) -> Judge | None:
    """What compares orders; None for a divided GPU, whose turns depend on what was launched before."""
    if times is None or engine == "pdmux" or chunk is None or chunk <= 0:
        return None
    return Judge(times, engine, chunk)


def _step_times(cost_model: CostModel, engine: str) -> StepTimeModel | None:
    """Step times, None where they cannot be modelled; with a warning where the engine needs them."""
    try:
        return StepTimeModel(cost_model.shape, cost_model.hardware)
    except ValueError as error:
        if engine != "alternating":
            logger.warning("blend: prefill is not spread over decode steps: %s", error)
        return None


def _priority_sign(scheduler: Scheduler) -> int:
    if not scheduler.enable_priority_scheduling:
        return 0
    return 1 if scheduler.schedule_low_priority_values_first else -1


def _shape(config: Mapping[str, Any], scheduler: Scheduler) -> ModelShape:
    kv_dtype = dtype_name(scheduler.tp_worker.model_runner.kv_cache_dtype)
    known = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
    return ModelShape.from_config(
        config,
        tensor_parallel=get_parallel().attn_tp_size,
        kv_dtype=kv_dtype if kv_dtype in known else "auto",
    )

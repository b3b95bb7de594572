"""Which GPUs hold a model: how many, what is left of their memory for the KV cache, and how fast they are."""

from __future__ import annotations

from sglang.batch.plan.prompts import PlannedModel
from sglang.batch.usage import BadUsage
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.engines import PoolWork, practical_optimum
from sglang.srt.blend.core.cost.hardware import Hardware
from sglang.srt.blend.core.cost.kv_capacity import kv_cache_bytes
from sglang.srt.blend.core.cost.kv_capacity import kv_capacity as rank_kv_capacity
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.core.pool.workload import Workload

DEGREES = (1, 2, 4, 8)
"""Numbers of GPUs, all of one node, that are tried."""

LEAST_KV = 0.1
"""Share of the static memory that the KV cache must get for a number of GPUs to be enough."""


def kv_capacity(model: PlannedModel, hardware: Hardware, degree: int) -> int:
    """Count the KV tokens that fit beside the weights, as the simulated GPU's platform does.

    Args:
        degree: GPUs that share the model.

    Returns:
        Tokens; negative where the weights alone do not fit.
    """
    tokens = rank_kv_capacity(model.shape(degree), hardware, model.server["mem_fraction_static"])
    return min(tokens, model.server["max_total_tokens"] or tokens)


def enough_gpus(model: PlannedModel, hardware: Hardware, longest_prompt: int) -> int:
    """Find the least of the DEGREES that leaves room for a KV cache; the largest where none does.

    Args:
        longest_prompt: tokens, which must fit into the KV cache.
    """
    fraction = model.server["mem_fraction_static"]
    for degree in DEGREES:
        room = kv_capacity(model, hardware, degree)
        free = kv_cache_bytes(model.shape(degree), hardware, fraction)
        if room > longest_prompt and free >= LEAST_KV * (hardware.memory * fraction):
            return degree
    return DEGREES[-1]


def step_times(model: PlannedModel, hardware: Hardware, degree: int) -> StepTimeModel:
    """Model the steps of one GPU of `degree` that share the model.

    Raises:
        BadUsage: the GPUs cannot hold the model, or the step time model does not cover it.
    """
    try:
        times = StepTimeModel(model.shape(degree), hardware)
    except ValueError as error:
        raise BadUsage(str(error)) from None
    if kv_capacity(model, hardware, degree) <= 2:
        raise BadUsage(
            f"--hardware {hardware.name}: {degree} of them cannot hold the model,"
            f" {times.shape.weight_bytes / 1e9:.1f} GB of weights on each of {hardware.memory / 1e9:.0f} GB;"
            " choose larger GPUs or a larger --tp-size"
        )
    return times


def cost_model(times: StepTimeModel) -> CostModel:
    """Model what requests cost on the GPUs whose steps are modelled."""
    return CostModel(times.shape, times.hardware)


def optimum_seconds(workload: Workload, times: StepTimeModel, engine: str) -> float:
    """Seconds of the practical optimum, in which the longest answer takes a pass for each token."""
    work = pool_work(workload, times)
    return practical_optimum(times, engine, work, min_steps=int(workload.output.max()))


def pool_work(workload: Workload, times: StepTimeModel) -> PoolWork:
    """What the pool does if every shared prefix is computed once."""
    order, tree = workload.depth_first_order(), workload.tree(cost_model(times))
    return PoolWork.of(workload.prompt[order], workload.output[order], tree.lcp)

"""The policy's numbers, for ``get_server_info`` and for Prometheus."""

from __future__ import annotations

from dataclasses import asdict

from sglang.srt.blend.runtime.arguments import POLICY
from sglang.srt.blend.runtime.parts import BlendParts
from sglang.srt.blend.runtime.radix.cache import annotated_core
from sglang.srt.blend.runtime.radix.heaviest import heaviest_prefixes


def internal_state(blend: BlendParts) -> dict[str, object]:
    """What ``get_server_info`` shows of the policy, JSON-serialisable: a `snapshot` and more.

    ``policy`` is the one that decides now (see `switching`), ``decisions`` says how often each `Reason` was
    given, ``cached_prefixes`` are the `heaviest_prefixes`, a dict each; None where cached prefixes carry no
    annotations. ``outlook`` is the `Outlook` as a dict, None where step times cannot be modelled, and
    ``engine`` how it takes passes to be made; ``step_times`` is the `StepReport` as a dict, None where steps
    are not measured; ``lengths`` are `WorkDone.lengths` as (expected, real, answers), and ``accept_length``
    the tokens that a step yields for each running request.
    """
    core = annotated_core(blend.policy.tree_cache)
    prefixes = None if core is None else [asdict(prefix) for prefix in heaviest_prefixes(core)]
    pool, table = blend.pool, blend.planner.table
    outlook = None if blend.clock is None else blend.clock.outlook(table, pool.done, pool.holders())
    return {
        **snapshot(blend),
        "policy": blend.watches or POLICY,
        "decisions": blend.planner.state.reasons,
        "cached_prefixes": prefixes,
        "engine": None if blend.clock is None else blend.clock.engine,
        "outlook": None if outlook is None else asdict(outlook),
        "accept_length": blend.planner.speculation.accept_length,
        "step_times": None if blend.measured is None else asdict(blend.measured.report()),
        "lengths": [[*sizes, answers] for sizes, answers in sorted(pool.done.lengths.items())],
    }


def snapshot(blend: BlendParts) -> dict[str, float | str | None]:
    """The numbers of this moment, JSON-serialisable; O(1), so gauges can follow at upstream's pace.

    Densities are None while nothing waits that decodes; nothing is partitioned while nothing of the plan
    waits. Steps are summed up some time after they ended; None where they are not measured. Names that end in
    ``_tokens`` are KV or prompt tokens, the rest are counts, shares and seconds.
    """
    planner, pool, measured = blend.planner, blend.pool, blend.measured
    state = planner.state
    return {
        "root_density": _finite(state.root_density),
        "pool_density": _finite(state.pool_density),
        "partition_compute_tokens": round(state.partition.compute),
        "partition_memory_tokens": round(state.partition.memory),
        "used_compute_tokens": round(state.used.compute),
        "used_memory_tokens": round(state.used.memory),
        "sharing_possible": state.sharing_possible,
        "sharing_achieved": pool.cached_tokens / pool.prompt_tokens if pool.prompt_tokens else 0.0,
        "waiting": state.waiting,
        "running": len(pool.running),
        "replans": state.replans,
        "queue_rebuilds": pool.order.rebuilds,
        "held": state.reasons["shared_prefix"],
        "expected_outputs": pool.expected,
        "retractions": pool.retractions,
        "completions": pool.completions,
        "aborts": pool.aborts,
        "prompt_tokens": pool.prompt_tokens,
        "cached_tokens": pool.cached_tokens,
        "kv_capacity": planner.kv_capacity,
        "step_seconds": None if measured is None else measured.seconds,
        "predicted_step_seconds": None if measured is None else measured.predicted_seconds,
        "hardware": planner.cost_model.hardware.name,
        "annotated_cache": blend.annotated,
    }


def _finite(density: float | None) -> float | None:
    return density if density is not None and density < float("inf") else None

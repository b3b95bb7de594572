"""The policy's numbers reach a user in ``get_server_info`` and as Prometheus gauges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from sglang.srt.blend.core.step.verdict import Reason
from sglang.srt.blend.runtime.radix.cache import annotated_core
from sglang.srt.blend.runtime.radix.heaviest import heaviest_prefixes

if TYPE_CHECKING:
    from sglang.srt.blend.runtime.parts import BlendParts

_GAUGES = {
    "root_density": "Comp/Mem of the waiting requests with their prefix sharing",
    "pool_density": "The same of all requests of the largest plan so far",
    "partition_compute_tokens": "KV tokens planned for requests of the compute side",
    "partition_memory_tokens": "KV tokens planned for requests of the memory side",
    "used_compute_tokens": "KV tokens that running requests of the compute side count for",
    "used_memory_tokens": "KV tokens that running requests of the memory side count for",
    "sharing_possible": "Share of the prompt tokens that need not be computed, in the largest plan so far",
    "sharing_achieved": "Share of the admitted prompt tokens that the cache served",
    "waiting": "Requests waiting in the plan",
    "running": "Requests admitted and not finished",
    "replans": "Plans made",
    "queue_rebuilds": "Scans of the whole waiting queue, after aborts",
    "held": "Times a request waited one step because another computed its prefix",
    "retractions": "Running requests that went back to the queue",
}


def internal_state(blend: BlendParts) -> dict[str, object]:
    """What ``get_server_info`` shows of the policy, JSON-serialisable: a `snapshot` and two more.

    ``decisions`` says how often each `Reason` was given, ``cached_prefixes`` are the `heaviest_prefixes`, a
    dict each; None where cached prefixes carry no annotations.
    """
    core = annotated_core(blend.policy.tree_cache)
    prefixes = None if core is None else [asdict(prefix) for prefix in heaviest_prefixes(core)]
    return {**snapshot(blend), "decisions": blend.planner.state.reasons, "cached_prefixes": prefixes}


def snapshot(blend: BlendParts) -> dict[str, float | str | None]:
    """The numbers of this moment, JSON-serialisable; O(1), so gauges can follow at upstream's pace.

    Densities are None while nothing waits that decodes; nothing is partitioned while nothing of the plan
    waits. Names that end in ``_tokens`` are KV or prompt tokens, the rest are counts and shares.
    """
    planner, pool = blend.planner, blend.pool
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
        "retractions": pool.retractions,
        "completions": pool.completions,
        "aborts": pool.aborts,
        "prompt_tokens": pool.prompt_tokens,
        "cached_tokens": pool.cached_tokens,
        "kv_capacity": planner.kv_capacity,
        "hardware": planner.cost_model.hardware.name,
        "annotated_cache": blend.annotated,
    }


def _finite(density: float | None) -> float | None:
    return density if density is not None and density < float("inf") else None


class PrometheusGauges:
    """Gauges named ``sglang:blend_*`` in upstream's registry, with upstream's labels.

    Args:
        labels: labels of the scheduler's own metrics (model name, ranks), by name.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        from prometheus_client import Gauge

        self._gauges = {
            name: Gauge(
                f"sglang:blend_{name}", help_text, list(labels), multiprocess_mode="mostrecent"
            ).labels(**labels)
            for name, help_text in _GAUGES.items()
        }
        decisions = Gauge(
            "sglang:blend_decisions",
            "Times that each reason decided about a waiting request",
            [*labels, "reason"],
            multiprocess_mode="mostrecent",
        )
        self._decisions = {reason.value: decisions.labels(**labels, reason=reason.value) for reason in Reason}

    def set(self, numbers: Mapping[str, float | str | None], decisions: Mapping[str, int]) -> None:
        """Publish a `snapshot` and how often each reason was given; a number that is None stays as it was."""
        for reason, times in decisions.items():
            self._decisions[reason].set(times)
        for name, gauge in self._gauges.items():
            value = numbers[name]
            if isinstance(value, (int, float)):
                gauge.set(value)

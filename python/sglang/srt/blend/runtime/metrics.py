"""The policy's numbers: as a dict for ``get_server_info`` and as Prometheus gauges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sglang.srt.blend.core.step.partition import Partition

if TYPE_CHECKING:
    from sglang.srt.blend.runtime.startup import Blend

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


def snapshot(blend: Blend) -> dict[str, Any]:
    """The numbers now; tokens, seconds and counts, JSON-serialisable.

    Densities are None while nothing waits that decodes; nothing is partitioned while nothing of the plan
    waits.
    """
    planner, pool = blend.planner, blend.pool
    planned = planner.scanner.num_waiting > 0
    partition, used = planner.partition if planned else Partition(0, 0), planner.used
    return {
        "root_density": _finite(planner.root_density) if planned else None,
        "pool_density": _finite(pool.density) if planner.replans else None,
        "partition_compute_tokens": round(partition.compute),
        "partition_memory_tokens": round(partition.memory),
        "used_compute_tokens": round(used.compute),
        "used_memory_tokens": round(used.memory),
        "sharing_possible": pool.sharing_possible,
        "sharing_achieved": pool.cached_tokens / pool.prompt_tokens if pool.prompt_tokens else 0.0,
        "waiting": pool.num_waiting,
        "running": len(pool.running),
        "replans": planner.replans,
        "queue_rebuilds": pool.order.rebuilds,
        "held": blend.held,
        "retractions": pool.retractions,
        "completions": pool.completions,
        "aborts": pool.aborts,
        "prompt_tokens": pool.prompt_tokens,
        "cached_tokens": pool.cached_tokens,
        "kv_capacity": blend.kv_capacity,
        "hardware": planner.cost_model.hardware.name,
        "annotated_cache": blend.annotated,
    }


def _finite(density: float) -> float | None:
    return density if density < float("inf") else None


class PrometheusGauges:
    """``sglang:blend_*`` in upstream's registry, with upstream's labels.

    Args:
        labels: of the scheduler's own metrics (model name, ranks).
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        from prometheus_client import Gauge

        self._gauges = {
            name: Gauge(
                f"sglang:blend_{name}", help_text, list(labels), multiprocess_mode="mostrecent"
            ).labels(**labels)
            for name, help_text in _GAUGES.items()
        }

    def set(self, numbers: Mapping[str, Any]) -> None:
        """Publish a snapshot; numbers that are not known keep their last value."""
        for name, gauge in self._gauges.items():
            if numbers[name] is not None:
                gauge.set(numbers[name])

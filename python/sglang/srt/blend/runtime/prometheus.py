"""The policy's numbers as Prometheus gauges, beside upstream's own."""

from __future__ import annotations

from collections.abc import Mapping

from sglang.srt.blend.core.step.verdict import Reason

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
    "step_seconds": "Seconds that steps took",
    "predicted_step_seconds": "Seconds that the hardware profile, as corrected, predicted for them",
    "retractions": "Running requests that went back to the queue",
}


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

"""Numbers for Prometheus, read from the store and the running jobs when they are asked for.

No ids, keys or texts are in them, so that whoever may read metrics learns nothing of anybody's batches.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from sglang.batch.serve.service import Service
from sglang.batch.serve.sums import Totals

PREFIX = "sglang_batch_"


def registry(service: Service) -> CollectorRegistry:
    """Make a registry of a service's numbers."""
    made = CollectorRegistry(auto_describe=False)
    made.register(_Collector(service))
    return made


def totals(service: Service) -> Totals:
    """Sum up all batches, ended and open; of those that do not run yet, lines only."""
    sums, live = service.store.sums.ended_totals(), service.batches.tallies()
    for batch in service.store.open_batches():
        sums += live.get(batch.id, Totals(batch.counts.completed, batch.counts.failed))
    return sums


def error_codes(service: Service) -> Counter[str]:
    """Count lines that failed, by code: of running batches, and of those that ended since the start."""
    live = service.batches.tallies()
    codes = Counter(service.batches.error_codes)
    for batch in service.store.open_batches():
        if batch.id in live:
            codes += live[batch.id].codes
    return codes


class _Collector(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        yield from self._batches()
        yield from self._lines_and_tokens()
        yield from self._online()
        yield from self._machine()

    def _batches(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(f"{PREFIX}batches", "Batches by state.", labels=["status"])
        for status, number in sorted(self._service.store.sums.batches_by_status().items()):
            family.add_metric([status], number)
        yield family

    def _lines_and_tokens(self) -> Iterator[Metric]:
        sums = totals(self._service)
        lines = CounterMetricFamily(f"{PREFIX}lines", "Lines with a record.", labels=["outcome"])
        lines.add_metric(["answered"], sums.answered)
        lines.add_metric(["failed"], sums.failed)
        yield lines
        tokens = CounterMetricFamily(
            f"{PREFIX}tokens",
            "Tokens of answered lines; cached ones are prompt tokens, too.",
            labels=["kind"],
        )
        tokens.add_metric(["prompt"], sums.prompt_tokens)
        tokens.add_metric(["cached"], sums.cached_tokens)
        tokens.add_metric(["completion"], sums.completion_tokens)
        yield tokens
        errors = CounterMetricFamily(
            f"{PREFIX}errors", "Lines that failed, since the service started.", labels=["code"]
        )
        for code, number in sorted(error_codes(self._service).items()):
            errors.add_metric([code], number)
        yield errors

    def _online(self) -> Iterator[Metric]:
        online = self._service.online
        if online is None:
            return
        yield GaugeMetricFamily(
            f"{PREFIX}online_in_flight", "Online requests in flight.", float(online.running)
        )
        requests = CounterMetricFamily(
            f"{PREFIX}online_requests", "Online requests since the start.", labels=["outcome"]
        )
        for outcome, number in sorted(online.outcomes.items()):
            requests.add_metric([outcome], number)
        yield requests
        tokens = CounterMetricFamily(
            f"{PREFIX}online_tokens", "Tokens of online requests since the start.", labels=["kind"]
        )
        tokens.add_metric(["prompt"], online.used.prompt)
        tokens.add_metric(["cached"], online.used.cached)
        tokens.add_metric(["completion"], online.used.completion)
        yield tokens

    def _machine(self) -> Iterator[Metric]:
        service = self._service
        yield GaugeMetricFamily(f"{PREFIX}engine_up", "Whether the engine is up.", float(service.engine_up()))
        yield GaugeMetricFamily(
            f"{PREFIX}stored_bytes", "Bytes of files in the store.", service.store.sums.stored_bytes()
        )
        free = shutil.disk_usage(service.store.root).free
        yield GaugeMetricFamily(f"{PREFIX}disk_free_bytes", "Free bytes of the store's disk.", free)

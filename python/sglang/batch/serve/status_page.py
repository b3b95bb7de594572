"""A page for people: the caller's batches and how fast the service is, without any script."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from sglang.batch.run.eta import duration
from sglang.batch.run.tally import Tally
from sglang.batch.serve.service import Service
from sglang.batch.serve.speeds import EVERY, HEIGHT, KEPT, WIDTH
from sglang.batch.serve.store import BatchRow
from sglang.batch.serve.sums import Totals

TEMPLATE = Path(__file__).with_name("status.html.jinja")

SHOWN = 50
"""Batches on the page, the newest."""

PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Refresh": "10",
}


@dataclass(frozen=True)
class Shown:
    """One batch on the page."""

    id: str
    status: str
    endpoint: str
    total: int
    answered: int
    failed: int
    when: str

    @property
    def share(self) -> float:
        """Lines with a record, of 1."""
        return (self.answered + self.failed) / self.total if self.total else 0.0


def render(service: Service, owner: str) -> str:
    """Write the page of an owner."""
    live = service.batches.tallies()
    rows = service.store.list_batches(owner, after=None, limit=SHOWN)
    codes: Counter[str] = Counter()
    sums = Totals()
    for row in rows:
        if (tally := live.get(row.id)) is not None:
            codes += tally.codes
            sums += tally
    page = Environment(autoescape=True, trim_blocks=True, undefined=StrictUndefined).from_string(
        TEMPLATE.read_text()
    )
    return page.render(
        up=service.engine_up(),
        models=", ".join(
            name.rpartition("/")[2] if name.startswith("/") else name for name in service.models
        ),
        batches=[_shown(row, live.get(row.id)) for row in rows],
        codes=codes.most_common(),
        sharing=sums.cached_tokens / sums.prompt_tokens if sums.prompt_tokens else None,
        speeds=service.speeds,
        uses=service.uses,
        chart=(WIDTH, HEIGHT),
        minutes=round(KEPT * EVERY / 60),
        now=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    )


def _shown(row: BatchRow, tally: Tally | None) -> Shown:
    answered, failed = row.counts.completed, row.counts.failed
    if tally is not None:
        answered, failed = tally.answered, tally.failed
    total = tally.lines if tally is not None else row.counts.total
    return Shown(
        id=row.id,
        status=row.status,
        endpoint=row.request.endpoint,
        total=total,
        answered=answered,
        failed=failed,
        when=_when(row, tally),
    )


def _when(row: BatchRow, tally: Tally | None) -> str:
    """Say when a batch ended, or how long it will take at its speed so far."""
    ends = ("completed_at", "failed_at", "cancelled_at", "expired_at")
    if ended := [row.times[name] for name in ends if row.times[name] is not None]:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(ended[0]))
    if tally is None or tally.done <= tally.earlier or tally.seconds <= 0:
        return "waits"
    left = (tally.lines - tally.done) * tally.seconds / (tally.done - tally.earlier)
    return f"{duration(left)} more"

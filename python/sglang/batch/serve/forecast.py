"""When batches will be done, and what they take: all that is queued, by the engine's speed so far."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel

from sglang.batch.run.lengths import Lengths
from sglang.batch.serve.admission import BatchWork, aim, forecast_ends
from sglang.batch.serve.estimate import TOKENS_PER_BYTE, Estimate, estimate
from sglang.batch.serve.live import Live
from sglang.batch.serve.pace import ENOUGH, OUTPUT_WEIGHT, Costs
from sglang.batch.serve.room import Room
from sglang.batch.serve.store import BatchRow, Store
from sglang.batch.serve.sums import OPEN

LONGER = 2.0
"""Times as long as foretold that a batch may well take."""

Basis = Literal["scheduler", "measured", "none", "ended"]

ENDED = ("completed_at", "failed_at", "cancelled_at", "expired_at")


class TokensSaved(BaseModel):
    """Tokens of a batch that need not be computed.

    Attributes:
        dedupe: in and out, of lines that get the answer of an equal one.
        sharing: of prompts, whose beginnings others had; None before the first answers.
    """

    dedupe: int
    sharing: int | None


class Forecast(BaseModel):
    """What is foretold of a batch.

    Attributes:
        basis: `scheduler` by what the engine's scheduler models of its pool, `measured` by the engine's speed
            so far where it models nothing, `none` as long as nothing is known, `ended` once there is nothing
            left to foretell.
        expected_end, expires_at: seconds since 1970.
        window_kept: whether it will end in its window, even if it takes twice as long as foretold.
        gpu_seconds: that the whole batch takes.
        prompt_tokens, completion_tokens: of the whole batch.
    """

    object: Literal["batch.forecast"] = "batch.forecast"
    id: str
    status: str
    basis: Basis
    expected_end: int | None
    expires_at: int
    window_kept: bool | None
    gpu_seconds: float | None
    prompt_tokens: int
    completion_tokens: int
    tokens_saved: TokensSaved


class Forecaster:
    """Foretells the batches of a store.

    Args:
        lengths: of answers, learned so far.
        gpus: of the engine; 1 where nobody knows.
    """

    def __init__(self, store: Store, room: Room, lengths: Lengths, *, gpus: int = 1) -> None:
        self._store = store
        self._room = room
        self._lengths = lengths
        self._gpus = gpus
        self._estimates: dict[str, Estimate] = {}
        self._bytes = self._tokens = 0.0

    async def estimate(self, batch: BatchRow) -> Estimate:
        """Look into a batch's file, the first time that anybody asks.

        Raises:
            OSError: it cannot be read.
        """
        if batch.id not in self._estimates:
            path = self._store.folder(batch.id) / "input.jsonl"
            self._estimates[batch.id] = await asyncio.to_thread(estimate, path, self._lengths)
        return self._estimates[batch.id]

    def costs(self, id: str) -> Costs:
        """What a line of a batch will cost, of which nothing is known but its file."""
        found = self._estimates.get(id)
        if found is None or not found.lines:
            return Costs()
        return Costs(found.line_bytes * self._tokens_per_byte + OUTPUT_WEIGHT * found.output)

    def ended(self, id: str, live: Live) -> None:
        """Learn from a batch that is done, or leaves for other reasons."""
        found, tally = self._estimates.pop(id, None), live.tally
        if found is not None and tally is not None and tally.answered > tally.twins:
            self._bytes += found.line_bytes * (tally.answered - tally.twins)
            self._tokens += tally.prompt_tokens

    @property
    def _tokens_per_byte(self) -> float:
        return self._tokens / self._bytes if self._bytes and self._tokens else TOKENS_PER_BYTE

    def forecast(self, batch: BatchRow, open_ones: Mapping[str, Live]) -> Forecast:
        """Foretell one batch.

        Args:
            open_ones: all batches that are being carried out, by id.
        """
        live = open_ones.get(batch.id)
        end, basis = self._end(batch, open_ones)
        lines = self._lines(batch, live)
        twins = 0 if live is None else live.twins
        prompt, completion = self._line_tokens(batch, live)
        tally = None if live is None else live.tally
        sharing = None
        if tally is not None and tally.prompt_tokens:
            sharing = round(tally.cached_tokens / tally.prompt_tokens * prompt * (lines - twins))
        return Forecast(
            id=batch.id,
            status=batch.status,
            basis=basis,
            expected_end=end,
            expires_at=batch.times["expires_at"] or 0,
            window_kept=self._kept(batch, end),
            gpu_seconds=self._gpu_seconds(batch, live, lines - twins),
            prompt_tokens=round(prompt * (lines - twins)),
            completion_tokens=round(completion * (lines - twins)),
            tokens_saved=TokensSaved(dedupe=round((prompt + completion) * twins), sharing=sharing),
        )

    def _end(self, batch: BatchRow, open_ones: Mapping[str, Live]) -> tuple[int | None, Basis]:
        if batch.status not in OPEN:
            return next((batch.times[name] for name in ENDED if batch.times[name] is not None), None), "ended"
        if self._room.pace.per_second is None or batch.id not in open_ones:
            return None, "none"
        in_room = self._room.works()
        works = [
            in_room[live.seat] if live.seat in in_room else self._outside(id, live)
            for id, live in open_ones.items()
        ]
        ends = forecast_ends(works, self._room.now(), sure=self._room.pace.sure)
        basis: Basis = "measured" if self._room.pace.modelled is None else "scheduler"
        return round(ends[list(open_ones).index(batch.id)]), basis

    def _outside(self, id: str, live: Live) -> BatchWork:
        """What is left of a batch that waits, or whose records are being written."""
        terms, tally = live.terms, live.tally
        found = self._estimates.get(id)
        lines = live.lines or (0 if found is None else found.lines)
        if tally is not None:
            lines = tally.lines - tally.done
        work = self._room.pace.line_seconds(self.costs(id)) * lines
        return BatchWork(terms.key, terms.weight, terms.deadline, aim(terms.begin, terms.deadline), work)

    def _lines(self, batch: BatchRow, live: Live | None) -> int:
        if batch.counts.total or live is None:
            return batch.counts.total
        found = self._estimates.get(batch.id)
        return 0 if found is None else found.lines

    def _line_tokens(self, batch: BatchRow, live: Live | None) -> tuple[float, float]:
        """Tokens in and out of a line that is run: of those answered, or as its file lets expect."""
        tally = None if live is None else live.tally
        if tally is not None and tally.answered - tally.twins >= ENOUGH:
            answered = tally.answered - tally.twins
            return tally.prompt_tokens / answered, tally.completion_tokens / answered
        if batch.usage is not None and batch.counts.completed:
            done = batch.counts.completed
            return batch.usage["input_tokens"] / done, batch.usage["output_tokens"] / done
        found = self._estimates.get(batch.id)
        return (0.0, 0.0) if found is None else (found.line_bytes * self._tokens_per_byte, found.output)

    def _gpu_seconds(self, batch: BatchRow, live: Live | None, lines: int) -> float | None:
        if live is None or self._room.pace.per_second is None:
            return None
        costs = self.costs(batch.id) if live.seat is None else live.seat.costs
        return round(self._room.pace.line_seconds(costs) * lines * self._gpus, 1)

    def _kept(self, batch: BatchRow, end: int | None) -> bool | None:
        if end is None:
            return None
        if batch.status not in OPEN:
            return batch.status == "completed"
        left = end - self._room.now()
        return self._room.now() + LONGER * left <= (batch.times["expires_at"] or 0)

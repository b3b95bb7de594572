"""What a person sees of a run while it runs: rate, end, both sides' share, sharing, failures."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from sglang.batch.progress import Show, progress_bar
from sglang.batch.run.blend_history import BlendState, answers_learned
from sglang.batch.run.eta import Eta, ModelledEta, PoolState, rate_eta
from sglang.batch.run.tally import Tally

INTERVAL = 1.0
"""Seconds between two looks at the run."""

LISTED_CODES = 3
"""Error codes that are named; the rest are summed up."""


@asynccontextmanager
async def shown_progress(
    tally: Tally, states: Sequence[tuple[float, BlendState]], *, pool: int, quiet: bool
) -> AsyncIterator[None]:
    """Show a run on stderr, as a bar or as lines in a log, until left.

    Args:
        tally: counts what is done; live.
        states: what polls of the scheduler found, the last one last; live.
        pool: requests in flight at most.
    """
    view = RunProgress(tally, states, pool=pool)
    with progress_bar(total=tally.lines, done=tally.done, quiet=quiet, log=True) as show:
        ticking = asyncio.ensure_future(_tick(view, show))
        try:
            yield
        finally:
            ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticking
            view.look()
            show(view)


async def _tick(view: RunProgress, show: Show) -> None:
    while True:
        view.look()
        show(view)
        await asyncio.sleep(INTERVAL)


class RunProgress:
    """A run's progress as text.

    Args: as of `shown_progress`.
    """

    def __init__(self, tally: Tally, states: Sequence[tuple[float, BlendState]], *, pool: int) -> None:
        self._tally, self._states, self._pool = tally, states, pool
        self._modelled = ModelledEta()
        self._began = time.monotonic()
        self._seen: BlendState | None = None

    @property
    def done(self) -> int:
        """Lines that have their record."""
        return self._tally.done

    def look(self) -> None:
        """Take notice of the last poll."""
        if not self._states or self._states[-1][1] is self._seen:
            return
        seconds, self._seen = self._states[-1]
        if (state := pool_state(self._seen)) is not None:
            self._modelled.observe(seconds, state)

    def text(self) -> str:
        """Say how fast it goes, when it ends, and what is going on, in one line."""
        tally = self._tally
        rate = (tally.done - tally.earlier) / tally.seconds if tally.seconds > 0 else 0.0
        parts = [f"{rate:,.1f} lines/s, {tally.tokens_per_second:,.0f} tokens/s", self._end()]
        if self._seen is not None:
            sides = self._seen["used_compute_tokens"], self._seen["used_memory_tokens"]
            if sum(sides):
                compute = sides[0] / sum(sides)
                parts.append(f"running {compute:.0%} compute, {1 - compute:.0%} memory side")
        if tally.prompt_tokens:
            parts.append(f"{tally.cached_tokens / tally.prompt_tokens:.0%} of input cached")
        if tally.failed:
            parts.append(self._failures())
        return "; ".join(part for part in parts if part)

    def _end(self) -> str:
        """Say when the run ends."""
        eta = self.eta(time.monotonic() - self._began)
        if eta is not None:
            how = "" if self._seen is not None else " at this rate"
            return f"ETA {eta.text()}{how}"
        return "ETA follows the first answers" if self._tally.done < self._tally.lines else ""

    def eta(self, seconds: float) -> Eta | None:
        """Predict the end, `seconds` after the start of the run; None while nothing says when.

        By the model where the scheduler has one, else by the rate.
        """
        tally = self._tally
        left = tally.lines - tally.done
        if not left:
            return None
        beyond = max(left - self._pool, 0)
        submitted = tally.lines - tally.earlier - beyond
        if self._seen is not None and pool_state(self._seen) is not None:
            return self._modelled.eta(seconds, submitted=submitted, beyond=beyond)
        return rate_eta(tally.seconds, tally.done - tally.earlier, left)

    def _failures(self) -> str:
        codes = self._tally.codes.most_common()
        named = [f"{count:,} {code}" for code, count in codes[:LISTED_CODES]]
        if others := sum(count for _, count in codes[LISTED_CODES:]):
            named.append(f"{others:,} others")
        return f"failed: {', '.join(named)}"


def pool_state(state: BlendState) -> PoolState | None:
    """Read what an end is predicted from; None where the scheduler does not say."""
    outlook = state.get("outlook")
    if outlook is None:
        return None
    return PoolState(
        done=outlook["done"],
        left=outlook["left"],
        left_high=outlook["left_high"],
        estimated=outlook["estimated"],
        answers=answers_learned(state),
    )

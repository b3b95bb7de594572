"""Waiting requests as a plan finds them: copies, which no step changes while the plan is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.order.begun import held_tokens
from sglang.srt.blend.core.order.sharing_account import NOTHING_BEFORE, Sharing
from sglang.srt.blend.core.pool.request_table import RequestTable, State
from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts

Ints = NDArray[np.int64]


class Runners(NamedTuple):
    """Requests that run; arrays (n,).

    Attributes:
        own: KV tokens that each holds for itself.
        context: KV tokens that each reads in a step.
        left: output tokens that each is expected to produce yet, 1 or more.
        memory_side: whether each counts on the memory side.
    """

    own: Ints
    context: Ints
    left: Ints
    memory_side: NDArray[np.bool_]

    @classmethod
    def of(cls, table: RequestTable) -> Runners:
        """Those that a table knows."""
        slots = np.flatnonzero(table.state == State.RUNNING)
        generated = table.generated[slots]
        context = table.store.length[slots] + generated
        return cls(
            own=np.maximum(context - table.shared[slots], 0),
            context=context,
            left=np.maximum(table.expected_many(slots) - generated, 1),
            memory_side=table.memory_side[slots],
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Requests to order; arrays (n,), in the order of their prompts.

    Attributes:
        prompts: the requests.
        held: prompt tokens that requests hold who run.
        prompt, output: tokens to prefill, sharing not deducted, and to decode.
        estimate, generated: output tokens that are expected and that there are; see `RequestTable`.
        extra: seconds of compute beside the decoder's own.
        sequence: numbers of their arrivals.
        running: those that run meanwhile.
        guessed: whether some of the outputs are estimates.
        before: sharing of requests that have begun.
        stream: whether others are to come.
        cached: (n,) prompt tokens of each that are in the cache, held or not, unless they are few; None where
            nobody asked.
        scenarios: (n, scenarios) output tokens that they may turn out to have; None where what is expected of
            them will do. See `scenarios`.
        few: whether there are scenarios, and so few requests, with those that these are left of, that one
            long answer may decide when the pool ends.
    """

    prompts: SortedPrompts
    held: Ints
    prompt: Ints
    output: Ints
    estimate: Ints
    generated: Ints
    extra: NDArray[np.float64]
    sequence: Ints
    running: Runners
    guessed: bool
    before: Sharing = NOTHING_BEFORE
    stream: bool = False
    cached: Ints | None = None
    scenarios: Ints | None = None
    few: bool = False

    @classmethod
    def of(cls, prompts: SortedPrompts, planned: NDArray[np.bool_], table: RequestTable) -> Snapshot:
        """Take some of the requests that a table knows.

        Args:
            prompts: (n,) requests that wait, run or are remembered.
            planned: (n,) which of them to take; they wait.
        """
        running = table.state[prompts.slots] == State.RUNNING
        held = held_tokens(prompts.common, running)[planned]
        prompts = prompts.subset(planned)
        slots = prompts.slots
        prompt, output = table.work(slots)
        return cls(
            prompts=prompts,
            held=held,
            prompt=prompt,
            output=output,
            estimate=table.estimate[slots],
            generated=table.generated[slots],
            extra=table.extra[slots],
            sequence=table.sequence[slots],
            running=Runners.of(table),
            guessed=bool((table.known[slots] == 0).any()),
        )

    @property
    def sharable(self) -> int:
        """Prompt tokens that these share with each other, or with those who run, in a depth-first walk."""
        return int(np.maximum(self.prompts.common, self.held).sum())

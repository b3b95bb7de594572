"""Who waits and who runs, and what each counts for: every change of a request's state, in one place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.pool.pending_index import PendingIndex
from sglang.srt.blend.core.pool.request_table import RequestTable, State
from sglang.srt.blend.core.step.dual_scan import Side
from sglang.srt.blend.core.step.fill import Fill
from sglang.srt.blend.core.step.pacing import WorkLeft
from sglang.srt.blend.core.step.partition import share_tokens
from sglang.srt.blend.core.step.room import both_end
from sglang.srt.blend.core.step.scanner import DualScanner
from sglang.srt.blend.core.step.speculation import Speculation
from sglang.srt.blend.core.step.stream import Stream

Ints = NDArray[np.int64]

# An estimate is far off if it is wrong by more than one part in so many.
_FAR = 4


@dataclass(frozen=True, slots=True)
class Progress:
    """How far running requests are; arrays (n,).

    Attributes:
        slots: requests.
        context: KV tokens that each reads per step: its prompt, shared or not, and its output so far.
        remaining: output tokens that each is expected to produce yet, 1 or more.
    """

    slots: Ints
    context: Ints
    remaining: Ints


@njit(cache=True)
def _work(slots, context, remaining, shared, known):  # type: ignore[no-untyped-def]
    """Of requests that run, (n,): output tokens to come, KV tokens read for them, and held; and the longest.

    How long a running answer will go on is a guess that grows with it; whoever waits longer for its end ends
    later in turn. So the longest is that of answers whose length is known.
    """
    output, reads, held, longest = np.int64(0), 0.0, 0.0, np.int64(0)
    for i in range(len(slots)):
        mean = context[i] + (remaining[i] + 1) / 2
        output += remaining[i]
        reads += remaining[i] * mean
        held += remaining[i] * (mean - shared[slots[i]])
        if known[slots[i]] > 0:
            longest = max(longest, remaining[i])
    return output, reads, held, longest


class Ledger:
    """The request table, with the scanner's accounts and the index of cached prefixes that follow it.

    Args:
        kv_capacity: KV tokens that requests may hold together.
        speculation: what a decoding step yields; one token of each request by default.

    Attributes:
        speculation: as given.
        table: the owner of every request's state.
        scanner: both ends of the last plan, and the share of each side that is in use.
        index: which cached prefixes waiting requests need, and when.
        fill: how full the cache is of what requests hold for themselves.
        stream: whether others keep coming.
        cached_tokens: prompt tokens that requests found in the cache when they began, all together.
    """

    def __init__(
        self, cost_model: CostModel, kv_capacity: int, speculation: Speculation | None = None
    ) -> None:
        self.cost_model = cost_model
        self.kv_capacity = kv_capacity
        self.speculation = speculation or Speculation()
        self.table = RequestTable()
        self.scanner = DualScanner(kv_capacity)
        self.index = PendingIndex()
        self.fill, self.stream = Fill(), Stream()
        self.cached_tokens = 0

    # ---------------------------------------------------------------- events

    def admit(self, slot: int, shared_tokens: int, cached_tokens: int = 0) -> Side:
        """A waiting request starts running; returns the side that it counts on.

        Args:
            shared_tokens: prompt tokens in KV that other running requests hold anyway.
            cached_tokens: prompt tokens that it need not compute.

        Raises:
            KeyError: it does not wait.
        """
        table = self.table
        table.require(slot, State.WAITING)
        self.cached_tokens += cached_tokens
        side, output = self.side(slot), table.expected(slot)
        table.leave(slot)
        table.estimate[slot] = output
        table.start_running(slot, shared=shared_tokens)
        self.index.set_waiting(slot, False)
        self.scanner.admit(slot, self.share(slot), side)
        table.memory_side[slot] = side is Side.MEMORY
        return side

    def retract(self, slot: int) -> None:
        """A running request goes back to the queue without its KV; KeyError if it does not run."""
        table = self.table
        table.require(slot, State.RUNNING)
        table.leave(slot)
        self.scanner.release(slot)
        table.start_waiting(slot)
        self.scanner.restore(slot)
        self.index.set_waiting(slot, True)

    def leave(self, slot: int) -> None:
        """A request leaves for good, waiting or running; KeyError if it has left already."""
        self.table.require(slot, State.WAITING, State.RUNNING)
        self.table.leave(slot)
        self.scanner.forget(slot)
        self.index.set_waiting(slot, False)

    def progress(self, slots: Ints, generated: Ints) -> None:
        """Running requests (n,) have generated so many tokens (n,); outlived estimates are corrected.

        Paper 5.4: a request that turns out to be memory-intensive moves to the memory side's account. An
        outlived estimate grows by an eighth at least, so the correction is rare.
        """
        table = self.table
        table.generated[slots] = generated
        outlived = slots[generated >= table.estimate[slots]]
        if len(outlived):
            self._correct(outlived, table.outlived(outlived))

    def look_again(self) -> None:
        """Lengths were learned anew: correct the estimates of running requests that are far off."""
        table = self.table
        running = np.flatnonzero((table.state == State.RUNNING) & (table.known == 0))
        if not len(running):
            return
        old, new = table.estimate[running], table.expected_many(running)
        far = np.abs(new - old) * _FAR > old
        self._correct(running[far], new[far])

    def _correct(self, slots: Ints, estimates: Ints) -> None:
        table = self.table
        densities = self.cost_model.density(table.store.length[slots], estimates)
        less = (densities < self.scanner.root_density).tolist()
        for slot, estimate, memory in zip(slots.tolist(), estimates.tolist(), less, strict=True):
            if table.state[slot] != State.RUNNING or estimate == table.estimate[slot]:
                continue
            table.correct(slot, estimate)
            self.scanner.rebalance(slot, self.share(slot), outlived=memory)
            table.memory_side[slot] = self.scanner.side_of(slot) is Side.MEMORY

    # ---------------------------------------------------------------- questions

    def side(self, slot: int) -> Side:
        """The side where a request runs, else from where it was proposed last, else by its own density.

        Samples and whoever came after the plan were proposed from neither end. While everything fits, sides
        decide nothing, but they are booked all the same: they say what runs when it does not fit any more.
        """
        side = self.scanner.side_of(slot)
        if side is None:
            prompt, output = self.table.store.length.item(slot), self.table.expected(slot)
            dense = float(self.cost_model.density(prompt, output)) >= self.scanner.root_density
            side = Side.COMPUTE if dense else Side.MEMORY
        return side

    def share(self, slot: int) -> float:
        """KV tokens that a running request counts for in its side's share; see `share_tokens`."""
        new_tokens = max(self.table.store.length.item(slot) - self.table.shared.item(slot), 0)
        return float(share_tokens(new_tokens, self.table.estimate.item(slot)))

    def fits_entirely(self) -> bool:
        """Whether everything that waits fits beside what runs, to its end: then nobody need be delayed."""
        table = self.table
        ahead = self.speculation.ahead * (table.num_waiting + table.num_running)
        return table.waiting_tokens + table.running_tokens + ahead <= self.kv_capacity

    def would_trap(self, slot: int, running: Ints, page_size: int) -> bool:
        """Whether one of `running` (n,) might never end beside a prompt that is computed in chunks."""
        table = self.table
        prompt = table.to_prefill(slot)
        at_worst = int((table.store.length[running] + table.max_new[running]).max(initial=0))
        at_worst += self.speculation.ahead
        return not both_end(prompt, at_worst, page_size=page_size, capacity=self.kv_capacity)

    def progress_of(self, slots: Ints) -> Progress:
        """How far running requests (n,) are, as far as the table knows."""
        table = self.table
        generated = table.generated[slots]
        return Progress(
            slots=slots,
            context=table.store.length[slots] + generated,
            remaining=np.maximum(table.expected_many(slots) - generated, 1),
        )

    def work_left(self, progress: Progress) -> WorkLeft:
        """What running and waiting requests will still do.

        Args:
            progress: of those that run.
        """
        table, speculation = self.table, self.speculation
        columns = progress.slots, progress.context, progress.remaining, table.shared, table.known
        to_come, reads, held, longest = _work(*columns)
        output, rows = table.waiting_output + to_come, table.waiting_rows + to_come
        reads, held = table.waiting_reads + reads, table.waiting_held + held
        longest = max(table.longest_waiting, longest)
        return WorkLeft(
            rows=rows + (speculation.rows(output) - output),
            kv_reads=speculation.steps(reads),
            kv_held=speculation.steps(held),
            longest=speculation.steps(float(longest)),
            density=self.cost_model.work_density(rows, reads),
            compute=self.scanner.demand,
            accept_length=speculation.accept_length,
            fill=self.fill.share,
            stream=self.stream.flows,
        )

    def density_left(self) -> float:
        """Comp / Mem of what running and waiting requests will still do."""
        return self.work_left(self.progress_of(np.flatnonzero(self.table.state == State.RUNNING))).density

    def _check(self) -> None:
        """The scanner and the index agree with the table about who waits and who runs."""
        table, scanner = self.table, self.scanner
        waiting, running = (np.flatnonzero(table.state == s).tolist() for s in (State.WAITING, State.RUNNING))
        assert table.num_waiting == len(waiting)
        assert sorted(scanner.accounts()) == running
        assert set(scanner.waiting()) <= set(waiting)
        for slot in running:
            side, tokens = scanner.accounts()[slot]
            assert tokens == self.share(slot)
            assert (side is Side.MEMORY) == table.memory_side[slot]
        indexed = [slot for slot in range(len(table.state)) if self.index.rank(slot) >= 0]
        assert [s for s in indexed if self.index.is_waiting(s)] == [s for s in waiting if s in set(indexed)]
        scanner._check()

"""Plans over those that wait: when one is made, from what, and which one the steps follow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.order.aside import LARGE, PlanAside
from sglang.srt.blend.core.order.judge import Judge
from sglang.srt.blend.core.order.plan import OrderedWindow, PlannerOptions, order_window
from sglang.srt.blend.core.order.samples import Samples
from sglang.srt.blend.core.order.scenarios import scenarios
from sglang.srt.blend.core.order.sharing_account import SharingAccount
from sglang.srt.blend.core.order.snapshot import Snapshot
from sglang.srt.blend.core.pool.request_table import UNPLANNED, State
from sglang.srt.blend.core.pool.sorted_pool import SortedPool
from sglang.srt.blend.core.step.leaders import CACHE_SHARE
from sglang.srt.blend.core.step.ledger import Ledger

# Steps after which what runs is looked at again for what it tells about lengths: so many at first, then so
# many times as many as at the last look.
_FIRST_LOOK, _LOOK_AGAIN = 16, 1.5

_FEW = 256
# Requests among which one long answer may decide when all have ended.

Ints = NDArray[np.int64]

CachedPrefixes = Callable[[int], Iterable[tuple[int, int, int]]]
"""Of at least so many tokens: ranges [lo, hi) of the sorted prompts, and how many of theirs are in the cache.
Longer prefixes follow shorter ones."""


class Replanning:
    """The plans of a pool. A large one is ordered beside the steps, which follow the old plan until then.

    Args:
        ledger: who waits and runs; its scanner is loaded with each plan.
        seed: of the sampling.
        judge: of orders; without one, that of density is taken.

    Attributes:
        pool: the ledger's requests, sorted.
        samples: requests that are run early.
        cached: what the cache holds of waiting prompts.
        window: the last plan; None before the first.
        made: plans so far.
        largest: requests that the largest plan was made for; sharing, density: its sharing ratio, and Comp /
            Mem of its requests.
    """

    def __init__(
        self, ledger: Ledger, options: PlannerOptions, seed: int, judge: Judge | None = None
    ) -> None:
        self._ledger, self._table, self._options = ledger, ledger.table, options
        self.judge = judge
        self.pool = SortedPool(ledger.table, options.memory)
        self.samples = Samples(ledger.table, np.random.default_rng(seed))
        self.cached: CachedPrefixes = lambda least: ()
        self.window: OrderedWindow | None = None
        self._aside = PlanAside()
        self._sharing = SharingAccount()
        self.made = self._completions = self._unplanned = 0
        self._steps, self._looked_at, self._open = 0, 0, False  # see `stale`
        self._guessed = False  # see `_trusted_judge`
        self._pool = 0  # requests that waited at a time, since there were none
        self.largest = 0
        self.sharing = self.density = 0.0

    # ---------------------------------------------------------------- when

    def arrived(self, requests: int) -> None:
        """So many requests have come."""
        waiting, running = self._table.num_waiting, self._table.num_running
        self._ledger.stream.arrived(requests, waiting=waiting, running=running)
        if waiting == requests and running == 0:
            self._pool = 0
        self.changed(requests)

    def changed(self, requests: int) -> None:
        """So many requests wait that the last plan does not know, or not as they are."""
        self._unplanned += requests

    def answered(self) -> None:
        """An answer has ended."""
        self._completions += 1

    def costs_changed(self, judge: Judge | None) -> None:
        """The ledger has another cost model, and this is its judge: the next step plans anew."""
        self.judge, self._completions = judge, sys.maxsize

    @property
    def stale(self) -> bool:
        """Whether a new plan pays: enough arrivals, or enough answers to trust them more."""
        waiting = self._table.num_waiting
        if waiting == 0:
            return False
        if self._unplanned * 64 >= waiting or self.samples.answered:
            return True
        if self._completions >= max(self._options.replan_interval, waiting // 20):
            return True
        if self._open and self._steps >= _LOOK_AGAIN * self._looked_at + _FIRST_LOOK:
            return True  # answers that run tell more, too
        return self._ledger.scanner.num_waiting == 0

    def step(self, everything_fits: bool) -> bool:
        """A step begins; whether it follows a new plan.

        Where everything fits nobody follows a plan, but what it says about a pool that has grown is shown.
        """
        self._steps += 1
        self._ledger.stream.step()
        window = self._aside.take(self._steps)
        if window is not None:
            self._follow(window)
            return True
        grown = self._table.num_waiting > 2 * self.largest
        if self._aside.making or not (grown if everything_fits else self.stale):
            return False
        if self._table.num_waiting < LARGE or not self._ledger.scanner.num_waiting:
            self.now()
            return True
        self._learn()
        self._count_waiting()
        self._rebuild_index()
        snapshot = self._snapshot()
        order = partial(self._ordered, snapshot, self._ledger.cost_model, self._trusted_judge)
        self._aside.begin(order, len(snapshot.prompts), self._steps)
        return False

    # ---------------------------------------------------------------- what

    def now(self) -> None:
        """Estimate, sort, split, merge and load the scanner with everything that waits."""
        self._aside.drop()
        self._learn()
        self._follow(self._ordered(self._snapshot(), self._ledger.cost_model, self._trusted_judge))

    def windows(self) -> list[OrderedWindow]:
        """The last plan's window, and those behind it."""
        assert self.window is not None
        ordered = [self.window]
        if self._options.window:
            slots = self.pool.prompts.slots
            rest = (self._table.state[slots] == State.WAITING) & ~self._planned()
            windows = self._table.sequence[slots] // self._options.window
            ordered += [self._order(rest & (windows == w)) for w in np.unique(windows[rest])]
        return ordered

    def refresh(self) -> None:
        """Take arrivals and departures into the sorted prompts, so that the index knows all requests."""
        if self.pool.refresh():
            self.samples.drop_absent()
            self._rebuild_index()

    def foresee(self, judge: Judge) -> float:
        """Modelled seconds until all that runs and waits in the last plan has ended, as a judge sees it."""
        assert self.window is not None
        window, cost_model = self.window, self._ledger.cost_model
        planned = np.zeros(len(self._table.state), np.bool_)
        planned[window.slots] = True
        requests = Snapshot.of(self.pool.prompts, planned[self.pool.prompts.slots], self._table)
        tree = requests.prompts.tree(requests.prompt, np.maximum(requests.output, 1), cost_model)
        index = np.empty(len(self._table.state), np.int64)
        index[requests.prompts.slots] = np.arange(len(requests.prompts))
        return judge.seconds(window.scan, index[window.slots], tree, requests, self._ledger.kv_capacity)

    @property
    def sharing_ratio(self) -> float:
        """Share of the planned prompts' tokens that need not be computed."""
        if self.window is None or not self.window.prompt:
            return 0.0
        return self.window.density.shared_tokens / self.window.prompt

    # ---------------------------------------------------------------- inside

    def _learn(self) -> None:
        """The first part of a plan: learn from every answer, and expect accordingly; choose samples."""
        self.refresh()
        self.made += 1
        self._pool = max(self._pool, self._table.num_waiting)
        if self._unplanned * 64 >= self._table.num_waiting:
            self._steps = 0  # of newcomers most is learned at first
        self._looked_at = self._steps
        self._completions = self._unplanned = 0
        self.samples.answered = False
        table, prompts = self._table, self.pool.prompts
        unknown = prompts.subset(table.known[prompts.slots] == 0)
        table.learn(unknown)
        self._ledger.look_again()
        self._open = bool((table.state[unknown.slots] == State.WAITING).any())
        answers = bool((table.state[unknown.slots] == State.FINISHED).any())
        planned = np.zeros(len(table.state), np.bool_)
        planned[prompts.slots[self._planned()]] = True
        options, capacity = self._options, self._ledger.kv_capacity
        self.samples.choose(unknown, planned[unknown.slots], options.sample_fraction, capacity)
        self._guessed = self._open and not (answers and self.samples.open == 0)

    def _planned(self) -> NDArray[np.bool_]:
        """Which sorted requests wait in the present window: the oldest that still has some waiting."""
        slots = self.pool.prompts.slots
        waits = self._table.state[slots] == State.WAITING
        if self._options.window and waits.any():
            window = self._table.sequence[slots] // self._options.window
            waits &= window == window[waits].min()
        return np.asarray(waits)

    def _snapshot(self) -> Snapshot:
        """Of the present window, with what of its sharing was used before."""
        planned = self._planned()
        snapshot = self._look(planned)
        if not len(snapshot.sequence):
            return snapshot
        oldest, newest = int(snapshot.sequence.min()), int(snapshot.sequence.max())
        before = self._sharing.before(oldest, newest, self._ledger.cached_tokens, snapshot.sharable)
        if not self._ledger.stream.flows:
            return replace(snapshot, before=before)
        return replace(snapshot, before=before, stream=True, cached=self._cached()[planned])

    def _cached(self) -> Ints:
        """Tokens of each sorted prompt that are in the cache, int64 (n,), unless they are few."""
        tokens = np.zeros(len(self.pool.prompts), np.int64)
        for lo, hi, cached in self.cached(max(self._ledger.kv_capacity // CACHE_SHARE, 1)):
            tokens[lo:hi] = cached
        return tokens

    def _order(self, planned: NDArray[np.bool_]) -> OrderedWindow:
        """Density order of the planned ones of the sorted requests."""
        return self._ordered(self._look(planned), self._ledger.cost_model, self._trusted_judge)

    def _look(self, planned: NDArray[np.bool_]) -> Snapshot:
        """Of the planned ones of the sorted requests, with what may become of mere guesses."""
        snapshot = Snapshot.of(self.pool.prompts, planned, self._table)
        if not self._guessed or self._trusted_judge is None:
            return snapshot
        outcomes = scenarios(self._table, snapshot.prompts.slots)
        return replace(snapshot, scenarios=outcomes, few=self._pool <= _FEW)

    @property
    def _trusted_judge(self) -> Judge | None:
        """The judge, unless density is the order.

        It is while requests come beside those that run: the end that a judge foresees is none then. And it is
        in a large pool, and what is left of it, while lengths are mere guesses, before the samples have
        answered: chance evens out there, and several outcomes take as many times as long to look at.
        """
        guessed = self._guessed and self._pool >= LARGE
        return None if guessed or self._ledger.stream.flows else self.judge

    def _ordered(self, snapshot: Snapshot, cost_model: CostModel, judge: Judge | None) -> OrderedWindow:
        return order_window(snapshot, cost_model, self._options, self._ledger.kv_capacity, judge)

    def _follow(self, window: OrderedWindow) -> None:
        """The last part of a plan: steps follow this order, as far as its requests still wait."""
        table, ledger = self._table, self._ledger
        self.refresh()
        waits = table.state[window.slots] == State.WAITING
        waits &= table.sequence[window.slots] == window.sequence  # and not another request in its slot
        table.shared[window.slots[waits]] = window.density.shared[waits]
        self.window = window = window.only(waits)
        table.plan_position.fill(UNPLANNED)
        table.plan_position[window.slots] = np.arange(len(window.slots))
        self._count_waiting()
        ledger.scanner.load(window.scan, ledger.density_left(), ledger.speculation.accept_length)
        self._rebuild_index()
        if table.num_waiting >= self.largest:
            self.largest, self.sharing = table.num_waiting, self.sharing_ratio
            self.density = ledger.scanner.root_density

    def _count_waiting(self) -> None:
        """Estimates or sharing have changed: count again what waits."""
        slots = self.pool.prompts.slots
        self._table.forget_waiting()
        self._table.count_waiting(slots[self._table.state[slots] == State.WAITING])

    def _rebuild_index(self) -> None:
        table, order, cost_model = self._table, self.pool.prompts.slots, self._ledger.cost_model
        prompt, output = table.store.length[order], table.estimate[order]
        self._ledger.index.rebuild(
            table.store,
            table.space,
            order,
            waiting=table.state[order] == State.WAITING,
            comp=cost_model.comp(prompt, output) + table.extra[order],
            mem=cost_model.mem(prompt, output),
            position=table.plan_position[order],
        )

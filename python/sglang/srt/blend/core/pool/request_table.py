"""What the planner knows of each request, as columns by slot, and the totals of those that wait or run."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sglang.srt.blend.core.pool.life_table import fill_quantiles, mean_length
from sglang.srt.blend.core.pool.output_length import HINTED, LengthEstimator
from sglang.srt.blend.core.pool.pending_index import NEVER
from sglang.srt.blend.core.pool.sorted_prompts import SortedPrompts
from sglang.srt.blend.core.pool.token_store import TokenStore

Ints = NDArray[np.int64]

UNPLANNED = NEVER - 1
"""Plan position of a request that came after the plan: used, but later than any planned one."""

# What an answer that has outlived its estimate is expected to have at least, of what it has.
_GROWTH = 1.125


@njit(cache=True)
def _expected(slots, generated, known, cap, hint, group, survival, sums, bins):  # type: ignore[no-untyped-def]
    """Output tokens that requests, (n,), are expected to have; columns by slot but for `generated`, (n,)."""
    expected = np.empty(len(slots), np.int64)
    for i in range(len(slots)):
        slot = slots[i]
        table = group[slot]
        if known[slot] > 0:
            expected[i] = min(known[slot], cap[slot])
        elif HINTED[0] <= table < HINTED[1] and generated[i] < hint[slot]:
            expected[i] = min(hint[slot], cap[slot])
        else:
            mean = mean_length(survival[table], sums[table], bins, generated[i], cap[slot])
            expected[i] = np.int64(np.rint(mean))
    return expected


@njit(cache=True)
def _ends(slots, parts, generated, known, cap, group, survival, sums, bins):  # type: ignore[no-untyped-def]
    """Steps until parts of requests end, (n, parts); columns by slot."""
    ends = np.empty((len(slots), parts), np.int64)
    for i in range(len(slots)):
        slot = slots[i]
        table = group[slot]
        if known[slot] > 0:
            ends[i] = min(known[slot], cap[slot])
        else:
            fill_quantiles(ends[i], survival[table], sums[table], bins, generated[slot], cap[slot])
        ends[i] -= generated[slot]
    return ends


class State(IntEnum):
    """Where a request is."""

    ABSENT = 0
    WAITING = 1
    RUNNING = 2
    FINISHED = 3  # gone, but its answer still informs the estimates of its neighbours


class RequestTable:
    """One row per slot; slots are small and used again.

    Attributes:
        store: prompts, and their lengths by slot.
        lengths: what is known of the lengths that nobody knows.
        state: `State`.
        space: namespace; prompts of different ones share nothing.
        max_new: cap of the output, tokens.
        known: output tokens if the request fixes them, else 0.
        hint: output tokens that earlier runs let expect, else 0.
        group: the request's group in `lengths`.
        extra: seconds of compute beside the decoder's own.
        estimate: expected output tokens when they were last looked at, 1 or more.
        generated: output tokens so far.
        observed: output tokens of an answer that has ended, else -1.
        shared: prompt tokens that others hold or will compute.
        plan_position: position in the last plan, or `UNPLANNED`.
        sequence: number of its arrival.
        sampled: run early to learn its length.
        memory_side: counts on the memory side, while it runs.
        preemptible: runs in KV that is promised to others, and is the first to be retracted.
        num_waiting, num_running: requests that wait or run.
        arrived: requests that have ever come; the next one has this number.
        waiting_tokens, running_tokens: KV tokens of those that wait or run, when they end; nothing shared.
        waiting_rows, waiting_reads: tokens to prefill or decode of those that wait, and KV tokens that they
            read for their output, once for each of its tokens.
        waiting_output: output tokens among these rows.
        waiting_held: KV tokens that they hold, once for each output token; what they share is held by others.
    """

    _COLUMNS = (
        ("state", np.int8),
        ("space", np.int32),
        ("max_new", np.int64),
        ("known", np.int64),
        ("hint", np.int64),
        ("group", np.int64),
        ("extra", np.float64),
        ("estimate", np.int64),
        ("generated", np.int64),
        ("observed", np.int64),
        ("shared", np.int64),
        ("plan_position", np.int64),
        ("sequence", np.int64),
        ("sampled", np.bool_),
        ("memory_side", np.bool_),
        ("preemptible", np.bool_),
    )
    state: NDArray[np.int8]
    space: NDArray[np.int32]
    max_new: Ints
    known: Ints
    hint: Ints
    group: Ints
    extra: NDArray[np.float64]
    estimate: Ints
    generated: Ints
    observed: Ints
    shared: Ints
    plan_position: Ints
    sequence: Ints
    sampled: NDArray[np.bool_]
    memory_side: NDArray[np.bool_]
    preemptible: NDArray[np.bool_]

    def __init__(self) -> None:
        self.store = TokenStore()
        self.lengths = LengthEstimator()
        for name, kind in self._COLUMNS:
            setattr(self, name, np.zeros(0, kind))
        self.num_waiting = self.num_running = 0
        self._longest = self._as_long = 0  # see `longest_waiting`; how many that wait are as long
        self.waiting_tokens = self.waiting_rows = self.waiting_reads = 0.0
        self.waiting_output = self.waiting_held = 0.0
        self.running_tokens = 0.0
        self.arrived = 0

    def put(
        self,
        tokens: NDArray[np.int32],
        offsets: Ints,
        *,
        max_new_tokens: NDArray[np.integer],
        known_output: NDArray[np.integer] | None,
        expected_output: NDArray[np.integer] | None,
        extra_compute: NDArray[np.float64] | None,
        namespace: NDArray[np.integer] | None,
    ) -> Ints:
        """Requests that wait from now on; see `Planner.add`. Their slots, (n,)."""
        slots = self.store.put(tokens, offsets)
        self._grow()
        n = len(slots)
        self.state[slots] = State.WAITING
        self.space[slots] = 0 if namespace is None else namespace
        self.max_new[slots] = np.maximum(max_new_tokens, 1)
        self.known[slots] = 0 if known_output is None else known_output
        self.hint[slots] = 0 if expected_output is None else expected_output
        self.group[slots] = self.lengths.newcomers(self.max_new[slots], self.hint[slots])
        self.extra[slots] = 0.0 if extra_compute is None else extra_compute
        self.observed[slots] = -1
        self.generated[slots] = 0
        self.shared[slots] = 0
        self.sampled[slots] = self.preemptible[slots] = False
        self.plan_position[slots] = UNPLANNED
        self.sequence[slots] = np.arange(self.arrived, self.arrived + n)
        self.estimate[slots] = self.expected_many(slots)
        self.count_waiting(slots)
        self.arrived += n
        self.num_waiting += n
        return slots

    def require(self, slot: int, *states: State) -> None:
        """KeyError unless the slot is in one of these states."""
        if not 0 <= slot < len(self.state) or self.state.item(slot) not in states:
            expected = " or ".join(state.name.lower() for state in states)
            raise KeyError(f"request slot {slot} is not {expected}")

    # ---------------------------------------------------------------- lengths

    def learn(self, prompts: SortedPrompts) -> None:
        """Learn from every answer, ended or not, and expect accordingly of what waits.

        Args:
            prompts: all requests of unknown length.
        """
        slots = prompts.slots
        if not len(slots):
            return
        ended = self.observed[slots] >= 0
        self.group[slots] = self.lengths.learn(
            prompts,
            lengths=self.store.length[slots],
            tokens=np.where(ended, self.observed[slots], self.generated[slots]),
            ended=ended,
            cap=self.max_new[slots],
            hint=self.hint[slots],
        )
        waiting = slots[self.state[slots] == State.WAITING]
        least = np.minimum(self.generated[waiting] + 1, self.max_new[waiting])
        self.estimate[waiting] = np.maximum(self.expected_many(waiting), least)

    def expected(self, slot: int) -> int:
        """Output tokens of a request when they were last looked at; more than it has, at most its cap."""
        estimate, generated = self.estimate.item(slot), self.generated.item(slot)
        if generated >= estimate:
            estimate = self.outlived(np.array([slot])).item(0)
        return min(estimate, self.max_new.item(slot))

    def expected_many(self, slots: Ints, generated: Ints | None = None) -> Ints:
        """Output tokens of requests, (n,), given how many each has; known ones as they are.

        Args:
            generated: output tokens of each so far, by default as noted.
        """
        generated = self.generated[slots] if generated is None else generated
        columns = self.known, self.max_new, self.hint, self.group
        return np.asarray(_expected(slots, generated, *columns, *self.lengths.columns))

    def outlived(self, slots: Ints) -> Ints:
        """What requests, (n,), that have outlived their estimates are expected to have, tokens."""
        generated = self.generated[slots]
        least = np.maximum(np.rint(_GROWTH * generated).astype(np.int64), generated + 1)
        return np.asarray(np.minimum(np.maximum(self.expected_many(slots), least), self.max_new[slots]))

    def to_prefill(self, slot: int) -> int:
        """Tokens of which a request has KV once it is prefilled: its prompt, and what it had generated."""
        return self.store.length.item(slot) + self.generated.item(slot)

    def work(self, slots: Ints) -> tuple[Ints, Ints]:
        """Tokens to prefill, sharing not deducted, and to decode, of waiting requests; each (n,).

        One that was retracted prefills what it had generated, and has less to decode.
        """
        generated = self.generated[slots]
        return self.store.length[slots] + generated, self.estimate[slots] - generated

    def ends(self, slots: Ints, parts: int) -> Ints:
        """Steps until running requests, (n,), end: quantiles of each, int64 (n, parts).

        Those of a known length are all the same, and nobody goes on beyond the cap.
        """
        columns = self.generated, self.known, self.max_new, self.group
        return np.asarray(_ends(slots, parts, *columns, *self.lengths.columns))

    # ---------------------------------------------------------------- totals

    def start_waiting(self, slot: int) -> None:
        """A running request, already out of the totals, goes back to the queue."""
        self.state[slot] = State.WAITING
        self.num_waiting += 1
        self._count_one(slot, 1)
        self._note_longest(self.estimate[slot : slot + 1] - self.generated[slot : slot + 1])

    def start_running(self, slot: int, *, shared: int) -> None:
        """A request, already out of the totals, was admitted beside so many tokens of its prompt."""
        self.state[slot] = State.RUNNING
        self.num_running += 1
        self.running_tokens += self.final_tokens(slot)
        self.shared[slot] = shared

    def correct(self, slot: int, estimate: int) -> None:
        """A running request outlived its estimate."""
        self.running_tokens += float(estimate - self.estimate[slot])
        self.estimate[slot] = estimate

    def leave(self, slot: int) -> State:
        """Take a request out of the totals of its state, which is returned."""
        state = State(self.state.item(slot))
        if state is State.WAITING:
            self.num_waiting -= 1
            self._count_one(slot, -1)
        elif state is State.RUNNING:
            self.num_running -= 1
            self.running_tokens -= self.final_tokens(slot)
        return state

    def final_tokens(self, slot: int) -> float:
        """KV tokens of a request when it ends."""
        return float(self.store.length.item(slot) + self.estimate.item(slot))

    def forget_waiting(self) -> None:
        """Start the totals of what waits again; `count_waiting` follows."""
        self.waiting_tokens = self.waiting_rows = self.waiting_reads = 0.0
        self.waiting_output = self.waiting_held = 0.0
        self._longest = self._as_long = 0

    def count_waiting(self, slots: Ints) -> None:
        """Add waiting requests to the totals of what waits."""
        prompt, output = self.work(slots)
        self.waiting_tokens += float((prompt + output).sum())
        self.waiting_rows += float((prompt - self.shared[slots] + output).sum())
        mean = prompt + (output + 1) / 2
        self.waiting_reads += float((output * mean).sum())
        self.waiting_output += float(output.sum())
        self.waiting_held += float((output * (mean - self.shared[slots])).sum())
        self._note_longest(output)

    @property
    def longest_waiting(self) -> int:
        """Estimated output tokens that the longest waiting answer has yet to produce; 0 if none waits."""
        if self.num_waiting and not self._as_long:
            waiting = self.state == State.WAITING
            self._longest = 0
            self._note_longest(self.estimate[waiting] - self.generated[waiting])
        return self._longest if self.num_waiting else 0

    def _note_longest(self, output: Ints) -> None:
        longest = int(output.max(initial=0))
        if longest > self._longest:
            self._longest, self._as_long = longest, 0
        self._as_long += int((output == self._longest).sum())

    def _count_one(self, slot: int, sign: int) -> None:
        """`count_waiting` of one request: admissions and ends come singly, and arrays of one are slow."""
        generated = self.generated.item(slot)
        prompt, output = self.to_prefill(slot), self.estimate.item(slot) - generated
        self.waiting_tokens += sign * float(prompt + output)
        mean, shared = prompt + (output + 1) / 2, self.shared.item(slot)
        self.waiting_rows += sign * float(prompt - shared + output)
        self.waiting_reads += sign * (output * mean)
        self.waiting_output += sign * float(output)
        self.waiting_held += sign * (output * (mean - shared))
        if sign < 0 and output == self._longest:
            self._as_long -= 1

    def _grow(self) -> None:
        missing = self.store.num_slots - len(self.state)
        if missing > 0:
            for name, kind in self._COLUMNS:
                setattr(self, name, np.concatenate([getattr(self, name), np.zeros(missing, kind)]))

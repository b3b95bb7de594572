"""The requests of one scheduler and the planner's slots: which request is which.

Events come from upstream (see ``plugin.HOOKS``): arrivals are read off the tail of the waiting queue
when the next prefill is formed, admissions come from the prefill adder, ends and retractions from the
release of the request's KV, aborts of waiting requests from their own release. Every event is
deterministic, so all tensor-parallel ranks hold equal pools.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.pool.request_table import State
from sglang.srt.blend.core.step.outlook import WorkDone
from sglang.srt.blend.core.step.step import Running, Step
from sglang.srt.blend.runtime.encoder_cost import EncoderCost, media_tokens
from sglang.srt.blend.runtime.output_counts import OutputCounts
from sglang.srt.blend.runtime.queue_order import QueueOrder
from sglang.srt.blend.runtime.radix.namespaces import Namespaces
from sglang.srt.blend.runtime.request import Batch, Request
from sglang.srt.blend.runtime.speculation import observe
from sglang.srt.blend.runtime.token_ids import fold

EXPECTED_OUTPUT = "blend_expected_output"
"""Entry of a request's `custom_params`: the output tokens that its sender expects, for the planner alone."""

UNKNOWN = -1
URGENT = 1 << 61
"""Requests of a priority of at least this (or of at most its negative, where low values go first) are those
that somebody waits for: nothing else begins until none of them waits."""

_OUTPUT = attrgetter("output_ids")
_INT32_MAX = 2**31 - 1


class RequestPool:
    """Joins a planner with the requests of a scheduler; what is known of them, the planner's table knows.

    Args:
        planner: plans; nobody else may add, admit or remove.
        namespaces: numbering of cache namespaces, shared with the radix tree.
        encoder: cost of the model's vision or audio encoder, if it has one.
        priority_sign: 1 when low priority values come first, -1 when high ones do, 0 without priorities.

    Attributes:
        running: admitted requests by slot, in order of admission: upstream counts their output.
        order: where each waiting request stands in upstream's queue.
        prompt_tokens, cached_tokens: of all admitted requests, and how many the cache served.
        done: their work so far.
        admissions, retractions, completions, aborts: counts.
        expected: requests that came with an `EXPECTED_OUTPUT`.
    """

    def __init__(
        self,
        planner: Planner,
        *,
        namespaces: Namespaces | None = None,
        encoder: EncoderCost | None = None,
        priority_sign: int = 0,
    ) -> None:
        self.planner = planner
        self.namespaces = namespaces if namespaces is not None else Namespaces()
        self.encoder = encoder
        self.priority_sign = priority_sign
        self.order = QueueOrder(self.waiting_slot)
        self.running: dict[int, Request] = {}
        self.prompt_tokens = self.cached_tokens = 0
        self.done = WorkDone()
        self.admissions = self.retractions = self.completions = self.aborts = self.expected = 0
        self._requests: list[Request | None] = []  # by slot
        self._priority = np.zeros(0, np.int64)  # by slot
        self._output = OutputCounts(self.running.get)
        self._classes: Counter[int] = Counter()  # waiting requests of each priority
        self._released: dict[int, Request] = {}  # KV given back, not yet seen in the queue again

    # ------------------------------------------------------------- who is who

    def slot(self, req: Request) -> int:
        """The request's slot, UNKNOWN when the pool does not hold it."""
        slot = getattr(req, "blend_slot", UNKNOWN)
        return slot if 0 <= slot < len(self._requests) and self._requests[slot] is req else UNKNOWN

    def waiting_slot(self, req: Request) -> int:
        """The request's slot if it waits, else UNKNOWN."""
        slot = self.slot(req)
        if slot != UNKNOWN and self.planner.table.state.item(slot) == State.WAITING:
            return slot
        return UNKNOWN

    def is_preemptible(self, req: Request) -> bool:
        """Whether a running request is the first to leave when KV is short."""
        slot = self.slot(req)
        return slot != UNKNOWN and bool(self.planner.table.preemptible[slot])

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits or runs."""
        return not self.running and self.planner.table.num_waiting == 0

    # ------------------------------------------------------------- events

    def synchronise(self, queue: list[Request]) -> None:
        """Take arrivals from the queue and notice whoever left it unannounced."""
        self.order.synchronise(queue, self._register)
        for slot in list(self._released):  # gave its KV back and did not come back: it is gone
            del self._released[slot]
            self._discard(slot)
        table = self.planner.table
        if table.num_waiting != len(queue):
            for slot in np.flatnonzero(table.state == State.WAITING).tolist():
                request = self._requests[slot]
                if slot not in self.order and request is not None:
                    self.drop(request)

    def admitted(self, req: Request, slot: int, cached_tokens: int) -> None:
        """A request whose step has admitted it starts running.

        Args:
            cached_tokens: prompt tokens that need not be computed.
        """
        self._leaves_queue(slot)
        self.order.leave(slot)
        self.running[slot] = req
        self._output.begins(slot, len(req.output_ids))
        self.admissions += 1
        self.prompt_tokens += len(req.origin_input_ids)
        self.cached_tokens += min(cached_tokens, len(req.origin_input_ids))
        self.done.begins(len(req.origin_input_ids) + len(req.output_ids), cached_tokens)
        table = self.planner.table
        req.blend_expected = None if table.known.item(slot) else table.estimate.item(slot)

    def release(self, req: Request) -> None:
        """The request's KV was given back: it has finished, or it goes back to the queue."""
        slot = self.slot(req)
        if slot not in self.running:
            return
        observe(self.planner.speculation, [req])
        if req.finished():
            if not _aborted(req):
                self.planner.observe(slot, len(req.output_ids))
                self.completions += 1
                shared = self.planner.table.shared.item(slot)
                self.done.ends(
                    len(req.origin_input_ids), len(req.output_ids), req.blend_expected, shared=shared
                )
            self._discard(slot)
        else:
            self._released[slot] = req
            self.planner.give_back(slot)

    def drop(self, req: Request) -> None:
        """A waiting request is aborted, be it one that was retracted since the last look at the queue."""
        if (slot := self.slot(req)) in self._released:
            self.aborts += 1
            self._discard(slot)
            return
        slot = self.waiting_slot(req)
        if slot == UNKNOWN:
            return
        self.aborts += 1
        self._leaves_queue(slot)
        self.order.drop(slot)
        self._discard(slot)

    def holding(self) -> dict[int, Request]:
        """The requests that hold KV, by slot, in order of admission."""
        if not self._released:
            return self.running
        return {slot: req for slot, req in self.running.items() if slot not in self._released}

    def holders(self, batch: Batch | None = None) -> Running:
        """The same, and how far they are.

        Args:
            batch: upstream's batch of those that decode. Its columns tell what objects need not be asked
                for one by one; prompts in chunks and whoever else is not in it have what they had.
        """
        running = self.holding()
        n, planner = len(running), self.planner
        slots = np.fromiter(running, np.int64, n)
        if (
            batch is not None
            and not planner.speculation.ahead
            and self._output.count(batch, planner.table.store.length)
        ):
            return Running(slots, self._output.of(slots))
        return Running(slots, np.fromiter(map(len, map(_OUTPUT, running.values())), np.int64, n))

    # ------------------------------------------------------------- order

    def bring_to_front(self, queue: list[Request], step: Step) -> None:
        """Put the requests that a step considers in front; if everything fits, all, in order of arrival."""
        if step.everything_fits:
            self.order.sort(queue, self._arrival_key)
            return
        try:
            self.order.bring_to_front(queue, step.proposals)
        except LookupError:
            self.synchronise(queue)
            self.order.bring_to_front(queue, step.proposals)

    def urgent(self) -> list[int]:
        """Slots of waiting requests whose priority is beyond URGENT, in order of arrival."""
        urgent = [priority for priority in self._classes if priority * self.priority_sign <= -URGENT]
        if not urgent:
            return []
        table = self.planner.table
        slots = np.flatnonzero(table.state == State.WAITING)
        slots = slots[np.isin(self._priority[slots], urgent)]
        in_order: list[int] = slots[np.argsort(table.sequence[slots])].tolist()
        return in_order

    @property
    def choose(self) -> Callable[[int, Sequence[int]], list[int]] | None:
        """Proposes requests of several priority classes; None where the plan may propose."""
        return self._by_priority if len(self._classes) > 1 else None

    def _by_priority(self, limit: int, due: Sequence[int] = ()) -> list[int]:
        """Waiting requests, class after class; within a class from both ends of the plan.

        Nobody is chosen behind those of a class that are due.
        """
        table, order = self.planner.table, self.planner.order
        order = order[table.state[order] == State.WAITING]
        chosen: list[int] = []
        for priority in sorted(self._classes, key=lambda value: value * self.priority_sign):
            late = [slot for slot in due if self._priority[slot] == priority]
            if late:
                return chosen + late[: limit - len(chosen)]
            members = order[self._priority[order] == priority]
            missing = self._classes[priority] - len(members)
            chosen += _both_ends(members, limit - len(chosen))
            if missing and len(chosen) < limit:
                chosen += self._unplanned(priority, chosen, limit - len(chosen))
            if len(chosen) >= limit:
                break
        return chosen

    def _unplanned(self, priority: int, planned: list[int], limit: int) -> list[int]:
        """Members of a class that arrived after the last plan, in order of arrival."""
        table = self.planner.table
        slots = np.flatnonzero(table.state == State.WAITING)
        slots = slots[(self._priority[slots] == priority) & ~np.isin(slots, planned)]
        first: list[int] = slots[np.argsort(table.sequence[slots])[:limit]].tolist()
        return first

    def _arrival_key(self, req: Request) -> tuple[int, int]:
        slot = req.blend_slot
        return int(self._priority[slot]) * self.priority_sign, int(self.planner.table.sequence[slot])

    # ------------------------------------------------------------- inside

    def _register(self, reqs: list[Request]) -> None:
        """Requests appear in the queue: new ones, and running ones that were retracted."""
        new = []
        for req in reqs:
            slot = self.slot(req)
            if slot == UNKNOWN:
                new.append(req)
                continue
            del self.running[slot]
            self._released.pop(slot, None)
            self.planner.retract(slot, len(req.output_ids))
            self.retractions += 1
            self._joins_queue(slot, req)
        if new:
            self._add(new)

    def _add(self, reqs: list[Request]) -> None:
        lengths = np.fromiter((len(r.origin_input_ids) for r in reqs), np.int64, len(reqs))
        tokens = np.concatenate([fold(r.origin_input_ids) for r in reqs])
        encoder = self.encoder
        expected = _int32(expected_output(r) for r in reqs)
        self.expected += int((expected > 0).sum())
        slots = self.planner.add(
            tokens,
            np.concatenate([[0], np.cumsum(lengths)]),
            max_new_tokens=_int32(_max_new_tokens(r) for r in reqs),
            known_output=_int32(known_output(r) for r in reqs),
            expected_output=expected,
            extra_compute=None
            if encoder is None
            else np.array([encoder.seconds(media_tokens(r.multimodal_inputs)) for r in reqs]),
            namespace=_int32(self.namespaces.intern(r.extra_key, r.cache_salt) for r in reqs),
        )
        self._grow(int(slots.max()) + 1)
        for slot, req in zip(slots.tolist(), reqs, strict=True):
            req.blend_slot, req.blend_pool = slot, self
            self._requests[slot] = req
            self._joins_queue(slot, req)

    def _grow(self, size: int) -> None:
        missing = max(size - len(self._requests), 0)
        if missing:
            missing = max(missing, len(self._requests))
            self._requests += [None] * missing
            self._priority = np.concatenate([self._priority, np.zeros(missing, np.int64)])

    def _joins_queue(self, slot: int, req: Request) -> None:
        priority = (req.priority or 0) if self.priority_sign else 0
        self._priority[slot] = priority
        self._classes[priority] += 1

    def _leaves_queue(self, slot: int) -> None:
        priority = int(self._priority[slot])
        self._classes[priority] -= 1
        if not self._classes[priority]:
            del self._classes[priority]

    def _discard(self, slot: int) -> None:
        self.running.pop(slot, None)
        self._released.pop(slot, None)
        self._requests[slot] = None
        self.planner.remove(slot)


def known_output(req: Request) -> int:
    """Output tokens that the request itself fixes; 0 when they are open."""
    params = req.sampling_params
    longest = _max_new_tokens(req)
    if longest <= 1:
        return longest
    runs_on = params.ignore_eos or params.min_new_tokens >= longest
    # These end an answer whatever its least length.
    open_end = params.stop_strs or params.stop_regex_strs or _has_grammar(req)
    return longest if runs_on and not open_end else 0


def expected_output(req: Request) -> int:
    """Output tokens that the request's sender expects; 0 without a usable word about it."""
    params = req.sampling_params.custom_params
    expected = params.get(EXPECTED_OUTPUT) if isinstance(params, Mapping) else None
    return expected if type(expected) is int and expected > 0 else 0


def _has_grammar(req: Request) -> bool:
    params = req.sampling_params
    return any((params.json_schema, params.regex, params.ebnf, params.structural_tag))


def _max_new_tokens(req: Request) -> int:
    longest: int = req.sampling_params.max_new_tokens
    return max(longest, 1)


def _aborted(req: Request) -> bool:
    reason = req.finished_reason
    return reason is not None and reason.to_json().get("type") == "abort"


def _int32(values: Iterable[int]) -> NDArray[np.int32]:
    return np.array([min(value, _INT32_MAX) for value in values], np.int32)


def _both_ends(slots: NDArray[np.int64], limit: int) -> list[int]:
    """Alternately from the compute end and the memory end of an ordered class."""
    n = min(len(slots), limit)
    chosen = np.empty(n, np.int64)
    chosen[0::2] = slots[: (n + 1) // 2]
    chosen[1::2] = slots[::-1][: n // 2]
    return [int(slot) for slot in chosen]

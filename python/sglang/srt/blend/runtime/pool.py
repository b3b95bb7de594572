"""The requests of one scheduler and the planner's slots: which request is which.

Events come from upstream (see ``plugin.HOOKS``): arrivals are read off the tail of the waiting queue
when the next prefill is formed, admissions come from the prefill adder, ends and retractions from the
release of the request's KV, aborts of waiting requests from their own release. Every event is
deterministic, so all tensor-parallel ranks hold equal pools.
"""

from __future__ import annotations

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
from sglang.srt.blend.runtime.priorities import Priorities
from sglang.srt.blend.runtime.queue_order import QueueOrder
from sglang.srt.blend.runtime.radix.namespaces import Namespaces
from sglang.srt.blend.runtime.request import Batch, Request
from sglang.srt.blend.runtime.speculation import observe
from sglang.srt.blend.runtime.token_ids import fold

EXPECTED_OUTPUT = "blend_expected_output"
"""Entry of a request's `custom_params`: the output tokens that its sender expects, for the planner alone."""

UNKNOWN = -1

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
        order: where each waiting request stands in upstream's queue; priorities: the class of each.
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
        self.priorities = Priorities(planner, priority_sign)
        self.order = QueueOrder(self.waiting_slot)
        self.running: dict[int, Request] = {}
        self.prompt_tokens = self.cached_tokens = 0
        self.done = WorkDone()
        self.admissions = self.retractions = self.completions = self.aborts = self.expected = 0
        self._requests: list[Request | None] = []  # by slot
        self._output = OutputCounts(self.running.get)
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
        self.priorities.leaves(slot)
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
        self.priorities.leaves(slot)
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
        planner, output = self.planner, self._output
        if (
            batch is not None
            and not self._released
            and not planner.speculation.ahead
            and output.count(batch, planner.table.store.length)
        ):
            slots = output.slots()
            return Running(slots, output.of(slots))
        running = self.holding()
        slots = np.fromiter(running, np.int64, len(running))
        return Running(slots, np.fromiter(map(len, map(_OUTPUT, running.values())), np.int64, len(running)))

    # ------------------------------------------------------------- order

    def bring_to_front(self, queue: list[Request], step: Step) -> None:
        """Put the requests that a step considers in front; if everything fits, all, in order of arrival."""
        if step.everything_fits:
            self.order.sort(queue, lambda req: self.priorities.arrival_key(req.blend_slot))
            return
        try:
            self.order.bring_to_front(queue, step.proposals)
        except LookupError:
            self.synchronise(queue)
            self.order.bring_to_front(queue, step.proposals)

    @property
    def choose(self) -> Callable[[int, Sequence[int]], list[int]] | None:
        """Proposes requests of several priority classes; None where the plan may propose."""
        return self.priorities.choose if self.priorities.differ else None

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
            self._output.ends(slot)
            self._released.pop(slot, None)
            self.planner.retract(slot, len(req.output_ids))
            self.retractions += 1
            self.priorities.joins(slot, req.priority)
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
            self.priorities.joins(slot, req.priority)

    def _grow(self, size: int) -> None:
        missing = max(size - len(self._requests), 0)
        if missing:
            missing = max(missing, len(self._requests))
            self._requests += [None] * missing

    def _discard(self, slot: int) -> None:
        if self.running.pop(slot, None) is not None:
            self._output.ends(slot)
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

"""The requests of one scheduler and the planner's slots: who waits, who runs, who has left.

Events come from upstream (see ``plugin.HOOKS``): arrivals are read off the tail of the waiting queue
when the next prefill is formed, admissions come from the prefill adder, ends and retractions from the
release of the request's KV, aborts of waiting requests from their own release. Every event is
deterministic, so all tensor-parallel ranks hold equal pools.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.step.dual_scan import UNLIMITED, Side
from sglang.srt.blend.core.step.pacing import Quota
from sglang.srt.blend.runtime.encoder_cost import EncoderCost, media_tokens
from sglang.srt.blend.runtime.queue_order import QueueOrder
from sglang.srt.blend.runtime.radix.namespaces import Namespaces
from sglang.srt.blend.runtime.token_ids import fold

UNKNOWN = -1
_OUTPUT = attrgetter("output_ids")
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Progress:
    """Running requests as ``core.forecast`` wants them; arrays (n,).

    Attributes:
        remaining: output tokens each is expected to produce yet, at least 1.
        released: KV tokens that it alone holds, its whole prompt counted.
        context: KV tokens that it reads per step: its prompt, shared or not, and its output so far.
        memory_side: whether it counts on the memory side.
        guest: whether it runs in room that is promised to others.
        slots: requests.
        spread: standard deviation of what they will hold together, KV tokens.
    """

    remaining: NDArray[np.int64]
    released: NDArray[np.int64]
    context: NDArray[np.int64]
    memory_side: NDArray[np.bool_]
    guest: NDArray[np.bool_]
    slots: NDArray[np.int64]
    spread: float


class RequestPool:
    """Joins a planner with the requests of a scheduler.

    Args:
        planner: plans; nobody else may add, admit or remove.
        namespaces: numbering of cache namespaces, shared with the radix tree.
        encoder: cost of the model's vision or audio encoder, if it has one.
        priority_sign: 1 when low priority values come first, -1 when high ones do, 0 without priorities.

    Attributes:
        running: admitted requests by slot, in order of admission.
        guests: slots of those that run in room promised to others.
        everything_fits: whether all that waited at the last look fits beside what runs.
        full_sides: sides whose next request did not fit; emptied when somebody leaves or the plan changes.
        longest_fit: output tokens of the longest memory-side request that fits behind one that did not.
        sharing_possible, density: share of prompt tokens that need not be computed, and Comp/Mem with that
            sharing, in the largest plan so far.
        prompt_tokens, cached_tokens: of all admitted requests, and how many the cache served.
        admissions, retractions, completions, aborts: counts.
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
        self.running: dict[int, Any] = {}
        self.guests: set[int] = set()
        self.everything_fits = False
        self.full_sides: set[Side] = set()
        self.longest_fit = UNLIMITED
        self.sharing_possible = self.density = 0.0
        self._largest_plan = 0
        self._draining = False  # what waits is left of a pool that did not fit
        self.prompt_tokens = self.cached_tokens = 0
        self.admissions = self.retractions = self.completions = self.aborts = 0
        self._requests: list[Any] = []
        self._waiting = np.zeros(0, np.bool_)
        self._priority = np.zeros(0, np.int64)
        self._arrival = np.zeros(0, np.int64)
        self._prompt = np.zeros(0, np.int64)
        self._shared = np.zeros(0, np.int64)
        self._arrived = 0
        self._classes: Counter[int] = Counter()
        self._released: dict[int, Any] = {}  # KV given back, not yet seen in the queue again

    # ------------------------------------------------------------- who is who

    def slot(self, req: Any) -> int:
        """The request's slot, UNKNOWN when the pool does not hold it."""
        slot: int = getattr(req, "blend_slot", UNKNOWN)
        return slot if 0 <= slot < len(self._requests) and self._requests[slot] is req else UNKNOWN

    def waiting_slot(self, req: Any) -> int:
        """The request's slot if it waits, else UNKNOWN."""
        slot = self.slot(req)
        return slot if slot != UNKNOWN and self._waiting[slot] else UNKNOWN

    @property
    def num_waiting(self) -> int:
        return self._classes.total()

    # ------------------------------------------------------------- events

    def synchronise(self, queue: list[Any]) -> None:
        """Take arrivals from the queue and notice whoever left it unannounced."""
        self.order.synchronise(queue, self._register)
        for slot in list(self._released):  # gave its KV back and did not come back: it is gone
            del self._released[slot]
            self._discard(slot)
        if self.num_waiting != len(queue):
            for slot in np.flatnonzero(self._waiting).tolist():
                if slot not in self.order:
                    self.drop(self._requests[slot])

    def admit(self, req: Any, *, shared_tokens: int, cached_tokens: int) -> Side | None:
        """A waiting request starts running; None if the pool does not know it.

        Args:
            shared_tokens: prompt tokens in KV that other running requests hold anyway.
            cached_tokens: prompt tokens that need not be computed.
        """
        slot = self.waiting_slot(req)
        if slot == UNKNOWN:
            return None
        self._stop_waiting(slot)
        self.admissions += 1
        self.order.leave(slot)
        self.running[slot] = req
        self._shared[slot] = shared_tokens
        self.prompt_tokens += len(req.origin_input_ids)
        self.cached_tokens += min(cached_tokens, len(req.origin_input_ids))
        return self.planner.admit(slot, shared_tokens)

    def release(self, req: Any) -> None:
        """The request's KV was given back: it has finished, or it goes back to the queue."""
        slot = self.slot(req)
        if slot not in self.running:
            return
        self.settle(slot)
        if req.finished():
            if not _aborted(req):
                self.planner.observe(slot, len(req.output_ids))
                self.completions += 1
            self._discard(slot)
        else:
            self._released[slot] = req
            self.planner.index.set_waiting(slot, True)  # evictions of this very step spare its prompt

    def invite(self, slot: int) -> None:
        """A request that was just admitted is the first to leave when memory is short."""
        self.guests.add(slot)
        self.running[slot].blend_guest = True

    def settle(self, slot: int) -> None:
        """A guest stays for good, or has left; nothing for anybody else."""
        if slot in self.guests:
            self.guests.remove(slot)
            self.running[slot].blend_guest = False

    def drop(self, req: Any) -> None:
        """A waiting request is aborted, be it one that was retracted since the last look at the queue."""
        if (slot := self.slot(req)) in self._released:
            self.aborts += 1
            self._discard(slot)
            return
        slot = self.waiting_slot(req)
        if slot == UNKNOWN:
            return
        self.aborts += 1
        self._stop_waiting(slot)
        self.order.drop(slot)
        self._discard(slot)

    def progress(self) -> Progress:
        """How far the requests that hold KV are; tells the planner, too."""
        running = self.running
        if self._released:
            running = {slot: req for slot, req in running.items() if slot not in self._released}
        n = len(running)
        slots = np.fromiter(running, np.int64, n)
        generated = np.fromiter(map(len, map(_OUTPUT, running.values())), np.int64, n)
        self.planner.progress(slots, generated)
        context = self._prompt[slots] + generated
        released = context - self._shared[slots]
        return Progress(
            remaining=np.maximum(self.planner.estimates(slots) - generated, 1),
            released=released,
            context=context,
            memory_side=self.planner.on_memory_side(slots),
            guest=np.isin(slots, list(self.guests)),
            slots=slots,
            spread=self.planner.spread(slots, released),
        )

    # ------------------------------------------------------------- order

    def plan(self, queue: list[Any], limit: int, *, paced: bool = False) -> None:
        """Make a new plan if it pays, and see whether one is needed at all.

        Where everything fits, nobody follows a plan. One is made all the same when more waits than twice
        the largest plan has seen, for what it says about the pool.

        Args:
            paced: prefill is spread over the steps left. Then what is left of a pool that did not fit goes on
                as planned to its end: admitted at once it would leave the longest answers nothing to hide.
        """
        fits = len(queue) <= limit and self.planner.fits_entirely()
        self._draining = paced and self.planner.scanner.num_waiting > 0 and (self._draining or not fits)
        self.everything_fits = fits and not self._draining
        grown = self.num_waiting > 2 * self._largest_plan
        pays = grown if self.everything_fits else self.planner.stale
        if pays:
            self._replan()

    def bring_to_front(self, queue: list[Any], limit: int, quota: Quota | None = None) -> int:
        """Put the requests to admit next in front; how many they are.

        When everything that waits fits, that is everything, in order of arrival.

        Args:
            quota: what the compute side may prefill in this step.
        """
        if self.everything_fits:
            self.order.sort(queue, self._arrival_key)
            return len(queue)
        slots = self._choose(limit, quota)
        if not slots and queue and not self.running:
            slots = [self.waiting_slot(queue[0])]  # whatever the plan says, someone goes
        try:
            self.order.bring_to_front(queue, slots)
        except LookupError:
            self.synchronise(queue)
            self.order.bring_to_front(queue, slots)
        return len(slots)

    def _replan(self) -> None:
        self.planner.replan()
        self.full_sides.clear()
        if self.num_waiting >= self._largest_plan:
            self._largest_plan = self.num_waiting
            self.sharing_possible = self.planner.sharing_ratio
            self.density = self.planner.root_density

    def side(self, slot: int) -> Side:
        """The end of the plan from which a waiting request was proposed, or else the one it is nearer to.

        When everything fits there is nothing to divide: all count as compute side, for which no room is
        kept free by others.
        """
        planner = self.planner
        if self.everything_fits:
            return Side.COMPUTE
        side = planner.scanner.proposed_side(slot)
        if side is None:
            prompt = len(self._requests[slot].origin_input_ids)
            dense = float(planner.cost_model.density(prompt, planner.estimate(slot))) >= planner.root_density
            side = Side.COMPUTE if dense else Side.MEMORY
        return side

    def may_fit(self, slot: int) -> bool:
        """False for a waiting request that need not be tried again until somebody leaves."""
        side = self.side(slot)
        if side not in self.full_sides:
            return True
        return side is Side.MEMORY and self.planner.estimate(slot) <= self.longest_fit

    def _choose(self, limit: int, quota: Quota | None) -> list[int]:
        classes = list(self._classes)
        if len(classes) <= 1:
            slots = self.planner.propose(limit, quota, longest=self.longest_fit)
            if self.full_sides:
                slots = [slot for slot in slots if self.may_fit(slot)]
            return slots
        order = self.planner.order
        order = order[self._waiting[order]]
        chosen: list[int] = []
        for priority in sorted(classes, key=lambda value: value * self.priority_sign):
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
        late = self._waiting & (self._priority == priority)
        late[planned] = False
        slots = np.flatnonzero(late)
        first: list[int] = slots[np.argsort(self._arrival[slots])[:limit]].tolist()
        return first

    def _arrival_key(self, req: Any) -> tuple[int, int]:
        slot = req.blend_slot
        return int(self._priority[slot]) * self.priority_sign, int(self._arrival[slot])

    # ------------------------------------------------------------- inside

    def _register(self, reqs: list[Any]) -> None:
        """Requests appear in the queue: new ones, and running ones that were retracted."""
        new = []
        for req in reqs:
            slot = self.slot(req)
            if slot == UNKNOWN:
                new.append(req)
                continue
            del self.running[slot]
            self._released.pop(slot, None)
            self.planner.progress(np.array([slot]), np.array([len(req.output_ids)]))
            self.planner.retract(slot)
            self.full_sides.clear()
            self.retractions += 1
            self._start_waiting(slot, req)
        if new:
            self._add(new)

    def _add(self, reqs: list[Any]) -> None:
        lengths = np.fromiter((len(r.origin_input_ids) for r in reqs), np.int64, len(reqs))
        tokens = np.concatenate([fold(r.origin_input_ids) for r in reqs])
        encoder = self.encoder
        slots = self.planner.add(
            tokens,
            np.concatenate([[0], np.cumsum(lengths)]),
            max_new_tokens=_int32(_max_new_tokens(r) for r in reqs),
            known_output=_int32(known_output(r) for r in reqs),
            extra_compute=None
            if encoder is None
            else np.array([encoder.seconds(media_tokens(r.multimodal_inputs)) for r in reqs]),
            namespace=_int32(self.namespaces.intern(r.extra_key, r.cache_salt) for r in reqs),
        )
        self._grow(int(slots.max()) + 1)
        for slot, req in zip(slots.tolist(), reqs, strict=True):
            req.blend_slot = slot
            self._requests[slot] = req
            self._prompt[slot] = len(req.origin_input_ids)
            self._arrival[slot] = self._arrived
            self._arrived += 1
            self._start_waiting(slot, req)

    def _grow(self, size: int) -> None:
        missing = size - len(self._requests)
        if missing <= 0:
            return
        missing = max(missing, len(self._requests))
        self._requests += [None] * missing
        for name in ("_waiting", "_priority", "_arrival", "_prompt", "_shared"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros(missing, old.dtype)]))

    def _start_waiting(self, slot: int, req: Any) -> None:
        self._waiting[slot] = True
        self._priority[slot] = (req.priority or 0) if self.priority_sign else 0
        self._classes[int(self._priority[slot])] += 1

    def _stop_waiting(self, slot: int) -> None:
        self._waiting[slot] = False
        priority = int(self._priority[slot])
        self._classes[priority] -= 1
        if not self._classes[priority]:
            del self._classes[priority]

    def _discard(self, slot: int) -> None:
        self.running.pop(slot, None)
        self._released.pop(slot, None)
        self._requests[slot] = None
        self.full_sides.clear()
        self.planner.remove(slot)


def known_output(req: Any) -> int:
    """Output tokens that the request itself fixes; 0 when they are open."""
    params = req.sampling_params
    longest = _max_new_tokens(req)
    if longest <= 1:
        return longest
    runs_on = params.ignore_eos or params.min_new_tokens >= longest
    # These end an answer whatever its least length.
    open_end = params.stop_strs or params.stop_regex_strs or _has_grammar(req)
    return longest if runs_on and not open_end else 0


def _has_grammar(req: Any) -> bool:
    params = req.sampling_params
    return any((params.json_schema, params.regex, params.ebnf, params.structural_tag))


def _max_new_tokens(req: Any) -> int:
    longest: int = req.sampling_params.max_new_tokens
    return max(longest, 1)


def _aborted(req: Any) -> bool:
    return bool(req.finished_reason.to_json().get("type") == "abort")


def _int32(values: Iterable[int]) -> NDArray[np.int32]:
    return np.array([min(value, _INT32_MAX) for value in values], np.int32)


def _both_ends(slots: NDArray[np.int64], limit: int) -> list[int]:
    """Alternately from the compute end and the memory end of an ordered class."""
    n = min(len(slots), limit)
    chosen = np.empty(n, np.int64)
    chosen[0::2] = slots[: (n + 1) // 2]
    chosen[1::2] = slots[::-1][: n // 2]
    return [int(slot) for slot in chosen]

"""Who joins the next prefill batch: upstream's ``PrefillAdder``, budgeting with estimated lengths.

Upstream decides one request at a time and asks three questions that we answer differently:

* *does its future fit?* Upstream reserves ``max_new_tokens * new_token_ratio`` for everyone. We forecast
  the highest KV use until the running requests end, with estimated output lengths (paper 5.1).
* *is it its turn?* Only requests that the plan proposes are admitted (paper 5.3); when one does not fit,
  its side waits and the other side fills the step.
* *would it compute what another request of this step computes?* Then it waits for one step (paper A.2).

Whether the allocator can hold a request *now* stays upstream's answer, and upstream's retraction remains
the safety net for forecasts that were too low.
"""

from __future__ import annotations

from collections.abc import Hashable
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.step.dual_scan import UNLIMITED, Side
from sglang.srt.blend.core.step.forecast import KVForecast
from sglang.srt.blend.runtime.pool import UNKNOWN
from sglang.srt.blend.runtime.radix.sharing import held_tokens, uncached_prefix_key
from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS, AddReqResult, PrefillAdder
from sglang.srt.mem_cache.prefill_budget import PrefillBudget

if TYPE_CHECKING:
    from sglang.srt.blend.runtime.startup import Blend

_LATE_STEPS = 2
"""Steps by which the scheduler sees an ended request later than a forecast of its length tells."""

_DEVIATIONS = 3.0
"""Of what running requests will hold: room kept free, for a retraction computes a prompt again."""

_BROKEN_PROMISES = 1.5
"""How many times what it costs a guest's visit must bring: others who come meanwhile cut it short."""

MAX_PASSED_OVER = 32
"""Requests that may be passed over in one step: each costs a prefix match."""


@dataclass(frozen=True, slots=True)
class _Outlook:
    """Forecasts of everybody that runs, and of the memory side alone."""

    everybody: KVForecast
    memory: KVForecast

    def add(self, side: Side, new_tokens: int, remaining: int) -> None:
        self.everybody.add(new_tokens, remaining)
        if side is Side.MEMORY:
            self.memory.add(new_tokens, remaining)

    def copy(self) -> _Outlook:
        return _Outlook(copy(self.everybody), copy(self.memory))


class BlendPrefillAdder(PrefillAdder):
    """One prefill step's admissions.

    Attributes:
        blend: the scheduler's planner and accounts; set by `adder_class`.
    """

    blend: ClassVar[Blend]
    rem_chunk_tokens: int | None  # upstream's, of this step
    chunked_req_limit: int | None  # upstream's, of the prompt that continues

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._constructing = True
        super().__init__(*args, **kwargs)
        self._constructing = False
        # Sliding windows and recurrent states have budgets of their own, with which we do not meddle.
        self._forecasting = (
            type(self.memory_budget) is PrefillBudget
            and not self._mamba_slot_cost
            and self.dllm_config is None
        )
        if self._forecasting:  # the forecast accounts for what running requests will produce
            self.memory_budget.total_offset = self.memory_budget.current_offset
        # A state slot taken for a request that is then passed over would not be given back.
        self._may_pass_over = not self.tree_cache.supports_mamba()
        self._outlook: _Outlook | None = None  # without guests: they leave when others need their room
        self._crowd: _Outlook  # with them; the same object while there are none
        self._guest = UNKNOWN  # slot of the request that is to be one if it is admitted now
        quota = self.blend.policy.quota
        self._quota = None if quota is None else quota.tokens  # what is left of it
        self._spare = self.blend.policy.spare  # what is left of it
        self._read_steps = 0.0  # of all work left; with the forecast
        self._reserve = 0  # KV tokens that the memory side leaves to the compute side; with the forecast
        self._passed_over = 0
        self.blend.leaders.next_step()
        self.blend.log.end_step()

    # ------------------------------------------------------------- whose turn

    def add_one_req(self, req: Any, has_chunked_req: bool, truncation_align_size: int | None) -> AddReqResult:
        pool = self.blend.pool
        slot = pool.waiting_slot(req)
        if slot == UNKNOWN:
            return super().add_one_req(req, has_chunked_req, truncation_align_size)
        if not pool.order.in_front(slot):
            return AddReqResult.OTHER  # the plan's proposals end here
        side = pool.side(slot)
        paced = side is Side.COMPUTE and self._quota is not None and not self._nothing_runs
        if paced and not self._quota:
            return self._pass_over(AddReqResult.OTHER)
        keys = self._keys(req)
        if self._may_pass_over and not self._nothing_runs:
            if not pool.may_fit(slot):
                return self._pass_over(AddReqResult.OTHER)
            if self._must_wait(req, keys, paced):
                self.blend.held += 1
                return self._pass_over(AddReqResult.OTHER)
        cached = req.prefix_len + req.host_hit_length
        shared = min(held_tokens(self.tree_cache, req), len(req.origin_input_ids))
        withheld = self._withhold() if paced else 0
        result = super().add_one_req(req, has_chunked_req, truncation_align_size)
        if withheld and self.new_chunked_req is not req:
            self.rem_chunk_tokens = (self.rem_chunk_tokens or 0) + withheld
            result = self.budget_state() if result is AddReqResult.OTHER else result
        if self.can_run_list and self.can_run_list[-1] is req:
            if side is Side.MEMORY and pool.planner.estimate(slot) > pool.longest_fit:
                pool.longest_fit = UNLIMITED
            self._admitted(slot, req, cached=cached, shared=shared)
            self._lead(keys)
            self._spend(req)
        elif result is AddReqResult.NO_TOKEN and self._may_pass_over:
            pool.full_sides.add(side)
            if side is Side.MEMORY:
                pool.longest_fit = self._longest_fit(req)
            if pool.longest_fit > 0 or len(pool.full_sides) < len(Side):
                return self._pass_over(AddReqResult.NO_TOKEN)
        return result

    def _keys(self, req: Any) -> tuple[Hashable | None, Hashable | None]:
        """See `uncached_prefix_key`: of what is always worth a step's delay, and of the least there is."""
        long = uncached_prefix_key(self.tree_cache, req)
        return long, None if self._quota is None else uncached_prefix_key(self.tree_cache, req, 1)

    def _must_wait(self, req: Any, keys: tuple[Hashable | None, Hashable | None], paced: bool) -> bool:
        """Whether a request would compute what another of this step computes, and had better wait.

        The policy offers more of a paced side than the step's quota. As long as that lasts, whoever waits is
        replaced, and even the shortest prefix is worth it.
        """
        leaders, (long, short) = self.blend.leaders, keys
        if leaders.must_wait(long):
            return True
        replaceable = len(req.full_untruncated_fill_ids) - req.prefix_len
        if not paced or replaceable > self._spare or not leaders.must_wait(short):
            return False
        self._spare -= replaceable
        return True

    def _lead(self, keys: tuple[Hashable | None, Hashable | None]) -> None:
        for key in keys:
            self.blend.leaders.lead(key)

    def _withhold(self) -> int:
        """Leave the chunk budget no larger than the quota; how many tokens are kept back.

        They are given back for the memory side, unless a prompt was cut.
        """
        if self.rem_chunk_tokens is None or self._quota is None:
            return 0
        withheld = max(self.rem_chunk_tokens - self._quota, 0)
        self.rem_chunk_tokens -= withheld
        return withheld

    def _spend(self, req: Any) -> None:
        """Prefill of any side is prefill of this step."""
        if self._quota is not None:
            self._quota = max(self._quota - req.extend_len, 0)

    def add_one_req_ignore_eos(self, req: Any) -> AddReqResult:
        """Upstream's way when there is no radix cache and the length is fixed."""
        if not self._future_fits(req):
            return AddReqResult.NO_TOKEN
        return super().add_one_req_ignore_eos(req)

    def add_chunked_req(self, req: Any) -> Any:
        """The next chunk of a prompt, no larger than what is free now.

        Upstream's budget has kept room for the rest of the prompt beside everyone's reserved output;
        ours relies on a forecast, so a chunk that does not fit waits, and nobody is admitted past it.
        """
        self._lead(self._keys(req))
        if not self._forecasting or self.rem_chunk_tokens is None:
            return super().add_chunked_req(req)
        room = int(self.memory_budget.remaining_current) // self.page_size * self.page_size
        if self._quota is not None and self._side(req) is Side.COMPUTE and not self._nothing_runs:
            room = min(room, self._quota // self.page_size * self.page_size)
        if room <= 0:
            self.rem_chunk_tokens = 0
            return req
        self.chunked_req_limit = min(room, self.chunked_req_limit or room)
        unfinished = super().add_chunked_req(req)
        self._spend(req)
        if unfinished is not None:
            self.memory_budget.total_offset += len(req.full_untruncated_fill_ids) - req.extend_end
            self.rem_chunk_tokens = 0  # upstream tracks one unfinished prompt, so nobody may follow it
        return unfinished

    def preempt_to_schedule(self, req: Any) -> bool:
        """Upstream may retract running requests for one of higher priority."""
        offset = self.memory_budget.total_offset
        preempted = super().preempt_to_schedule(req)
        if self._forecasting:  # their future was never in the offset
            self.memory_budget.total_offset = offset
            self._outlook = None
        return preempted

    def _side(self, req: Any) -> Side | None:
        """Side on which a running request counts; None if the planner does not know it."""
        slot = self.blend.pool.slot(req)
        return None if slot == UNKNOWN else self.blend.planner.side(slot)

    @property
    def _nothing_runs(self) -> bool:
        return not self.can_run_list and (self.running_batch is None or not self.running_batch.reqs)

    def _pass_over(self, enough: AddReqResult) -> AddReqResult:
        """Leave the request queued and go on with the next, unless too many were passed over."""
        self._passed_over += 1
        return AddReqResult.CONTINUE if self._passed_over < MAX_PASSED_OVER else enough

    def _admitted(self, slot: int, req: Any, *, cached: int, shared: int) -> None:
        blend = self.blend
        if self._outlook is not None:
            side = blend.pool.side(slot)
            new_tokens, remaining = self._new_tokens(req, shared), self._remaining(slot, req)
            guest, alone = slot == self._guest, self._crowd is self._outlook
            if guest and alone:
                self._crowd = self._outlook.copy()
            self._crowd.add(side, new_tokens, remaining)
            if not guest and not alone:
                self._outlook.add(side, new_tokens, remaining)
        blend.pool.admit(req, shared_tokens=shared, cached_tokens=cached)
        if slot == self._guest:
            blend.pool.invite(slot)
        blend.log.admitted(
            blend.planner,
            slot=slot,
            rid=req.rid,
            prompt=len(req.origin_input_ids),
            cached=cached,
            waiting=blend.pool.num_waiting,
        )

    # ------------------------------------------------------------- memory

    def _check_prefill_budget(
        self,
        req: Any,
        *,
        extend_input_len: int,
        total_tokens: int,
        swa_host_hit_length: int,
        chunk_limit: int | None,
    ) -> tuple[bool, int | None]:
        if self._forecasting:
            if not self._future_fits(req):
                return False, None
            # Of the output that upstream's total includes, only the first token is needed now.
            total_tokens -= max(self._reserved_output(req) - 1, 0)
        return super()._check_prefill_budget(
            req,
            extend_input_len=extend_input_len,
            total_tokens=total_tokens,
            swa_host_hit_length=swa_host_hit_length,
            chunk_limit=chunk_limit,
        )

    def _update_prefill_budget(
        self, prefix_len: int, extend_input_len: int, max_new_tokens: int, *args: Any, **kwargs: Any
    ) -> None:
        if self._forecasting:
            max_new_tokens = 0
        super()._update_prefill_budget(prefix_len, extend_input_len, max_new_tokens, *args, **kwargs)

    def _get_running_request_total_token_offset(self, req: Any) -> int:
        """Output tokens still to come; upstream sums them at construction and weighs preemptions."""
        if self._constructing and type(self.memory_budget) is PrefillBudget:
            return 0
        slot = self.blend.pool.slot(req)
        if slot == UNKNOWN or type(self.memory_budget) is not PrefillBudget:
            return int(super()._get_running_request_total_token_offset(req))
        return self._remaining(slot, req)

    def _future_fits(self, req: Any) -> bool:
        """Whether KV use would stay within the pool until everyone ends, as far as estimates tell."""
        slot = self.blend.pool.slot(req)
        if not self._forecasting or slot == UNKNOWN or self._nothing_runs:
            return True
        new_tokens = self._new_tokens(req, held_tokens(self.tree_cache, req))
        remaining = self._remaining(slot, req)
        side = self.blend.pool.side(slot)
        fits = all(
            forecast.peak_with(new_tokens, remaining) <= room
            for forecast, room in self._limits(side, remaining)
        )
        as_guest = not fits and side is Side.MEMORY and self._worth_a_visit(new_tokens)
        self._guest = slot if as_guest else UNKNOWN
        return fits or as_guest

    def _worth_a_visit(self, new_tokens: int) -> bool:
        """Whether a request should begin in room that it has to leave to others before it ends.

        Until then its rows share what a step costs however few it has. What it holds when it leaves is
        computed once more. Not where prefill and steps hide behind each other: nothing is fixed there.
        """
        blend = self.blend
        if blend.policy.overlaps:
            return False
        room = self._room(self._crowd)
        steps = min(
            self._crowd.everybody.longest(new_tokens, room),
            self._crowd.memory.longest(new_tokens, room - self._reserve),
        )
        if steps <= _LATE_STEPS:
            return False
        cost = blend.planner.cost_model
        shared = steps * cost.weight_time / (len(self._crowd.everybody) + 1)
        return shared > _BROKEN_PROMISES * float(cost.prefix_comp(new_tokens + steps))

    def _longest_fit(self, req: Any) -> int:
        """Output tokens of the longest memory-side request like this one that would fit; 0 if none would."""
        if self._outlook is None:
            return 0
        new_tokens = self._new_tokens(req, held_tokens(self.tree_cache, req))
        longest = min(forecast.longest(new_tokens, room) for forecast, room in self._limits(Side.MEMORY))
        return max(longest - _LATE_STEPS, 0)

    def _limits(self, side: Side, remaining: int = 0) -> list[tuple[KVForecast, int]]:
        """Forecasts that one more request of a side must keep within so many KV tokens.

        Long answers that begin together grow together, past their share. So the memory side alone must stay
        within what the compute side leaves, now and when all who compute now have been followed by others.
        Not so a request that outlasts all other work: what it displaces can follow beside it, while the pool
        would have to wait for it alone if it started later.

        Args:
            remaining: output tokens of the request.
        """
        outlook = self._outlook = self._outlook or self._look_ahead()
        room = self._room(outlook)
        limits = [(outlook.everybody, room)]
        if side is Side.MEMORY and remaining < self._read_steps:
            limits.append((outlook.memory, room - self._reserve))
        return limits

    def _room(self, outlook: _Outlook) -> int:
        """KV tokens for those of the outlook and one more, with what partly filled pages waste."""
        return self.blend.kv_capacity - (self.page_size - 1) * (len(outlook.everybody) + 1)

    def _look_ahead(self) -> _Outlook:
        """Forecasts of all running requests but guests. Guests for whom there is room now stay for good."""
        pool, policy = self.blend.pool, self.blend.policy
        unchanged = pool.admissions == policy.admissions and not self.preempt_list
        progress = policy.progress if unchanged else pool.progress()
        used = self.blend.kv_capacity - int(self.memory_budget._available_and_evictable())
        # A prompt that continues in chunks has not taken its KV yet.
        used += sum(len(r.full_untruncated_fill_ids) - r.prefix_len for r in self.can_run_list)
        margin = 0 if pool.everything_fits else int(_DEVIATIONS * progress.spread)
        work = self.blend.planner.work_left(progress.remaining, progress.context)
        self._read_steps = work.read_steps(self.blend.kv_capacity)
        paced = policy.quota is not None
        reserve = work.compute_reserve(self.blend.kv_capacity) if paced else pool.planner.compute_reserve
        self._reserve = int(reserve)
        remaining, released = progress.remaining + _LATE_STEPS, progress.released

        def outlook(present: NDArray[np.bool_]) -> _Outlook:
            held = used - int(released[~present].sum())
            memory, compute = present & progress.memory_side, present & ~progress.memory_side
            return _Outlook(
                KVForecast(held, remaining[present], released[present], margin),
                KVForecast(held - int(released[compute].sum()), remaining[memory], released[memory], margin),
            )

        guest = progress.guest
        self._outlook = without = outlook(~guest)
        self._crowd = outlook(np.ones_like(guest)) if guest.any() else without
        for i in np.flatnonzero(guest).tolist():
            held, left = int(released[i]), int(remaining[i])
            if all(f.peak_with(held, left) <= room for f, room in self._limits(Side.MEMORY, left)):
                pool.settle(int(progress.slots[i]))
                without.add(Side.MEMORY, held, left)
        return without

    def _new_tokens(self, req: Any, shared: int) -> int:
        return len(req.full_untruncated_fill_ids) - shared

    def _remaining(self, slot: int, req: Any) -> int:
        return max(self.blend.planner.estimate(slot) - len(req.output_ids), 1) + _LATE_STEPS

    @staticmethod
    def _reserved_output(req: Any) -> int:
        """The output part of upstream's ``total_tokens``."""
        return min(max(req.sampling_params.max_new_tokens - len(req.output_ids), 0), CLIP_MAX_NEW_TOKENS)


def adder_class(blend: Blend) -> type[BlendPrefillAdder]:
    """The adder bound to one scheduler's accounts: upstream constructs it anew for every step."""
    return type("BlendPrefillAdder", (BlendPrefillAdder,), {"blend": blend})

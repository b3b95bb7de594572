"""Who joins the next prefill batch: upstream's ``PrefillAdder`` asks the planner's `Step`.

Upstream decides one request at a time. Whose turn it is, who computes a shared prefix and whether a request's
future fits is the step's decision; whether the allocator can hold it *now* stays upstream's answer, and
upstream's retraction remains the safety net for forecasts that were too low.
"""

from __future__ import annotations

from operator import not_
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sglang.srt.blend.core.step.verdict import Decision, Verdict
from sglang.srt.blend.runtime.pool import UNKNOWN
from sglang.srt.blend.runtime.radix.sharing import can_share, held_tokens
from sglang.srt.blend.runtime.request import Request
from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS, AddReqResult, PrefillAdder

if TYPE_CHECKING:
    from sglang.srt.blend.runtime.parts import BlendParts


_FUTURE = PrefillAdder._get_running_request_total_token_offset.__name__


class BoundPrefillAdder(PrefillAdder):
    """Upstream's adder, which is constructed anew for every step, with one scheduler's accounts.

    Attributes:
        blend: the scheduler's planner and accounts; set by `bound_to`.
    """

    blend: ClassVar[BlendParts]
    rem_chunk_tokens: int | None  # upstream's, of this step
    chunked_req_limit: int | None  # upstream's, of the prompt that continues

    @classmethod
    def bound_to(cls, blend: BlendParts) -> type[Self]:
        """The class for one scheduler."""
        return type(cls.__name__, (cls,), {"blend": blend})


class BlendPrefillAdder(BoundPrefillAdder):
    """Translates one prefill step's admissions between upstream and the planner."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._forecasts = self.blend.policy.limits.forecasts
        self._ahead = self.blend.planner.speculation.ahead
        if self._forecasts:
            # Upstream sums this over everybody who runs; `not_` is 0 for each, without a call into Python.
            self.__dict__[_FUTURE] = not_
        super().__init__(*args, **kwargs)
        self.__dict__.pop(_FUTURE, None)
        self._step = self.blend.policy.step
        if self._forecasts:  # the forecast accounts for what running requests will produce
            self.memory_budget.total_offset = self.memory_budget.current_offset

    # ------------------------------------------------------------- admission

    def add_one_req(
        self, req: Request, has_chunked_req: bool, truncation_align_size: int | None
    ) -> AddReqResult:
        """Admit a waiting request, leave it in the queue, or end the step."""
        slot = self.blend.pool.waiting_slot(req)
        if slot == UNKNOWN:
            return super().add_one_req(req, has_chunked_req, truncation_align_size)
        cached, held = req.prefix_len, held_tokens(self.tree_cache, req)
        decision = self._step.consider(
            slot,
            len(req.full_untruncated_fill_ids) - cached,
            shares=can_share(self.tree_cache, req),
            unheld_tokens=cached - held,
            chunk_tokens=self.rem_chunk_tokens,
        )
        if not decision.admits:
            return _result(decision)
        cached += req.host_hit_length
        withheld = self._withhold(decision.prefill_tokens)
        result = super().add_one_req(req, has_chunked_req, truncation_align_size)
        if withheld and self.new_chunked_req is not req:
            self.rem_chunk_tokens = (self.rem_chunk_tokens or 0) + withheld
            result = self.budget_state() if result is AddReqResult.OTHER else result
        if self.can_run_list and self.can_run_list[-1] is req:
            self._admitted(req, decision, cached=cached, shared=min(held, len(req.origin_input_ids)))
        elif result is AddReqResult.NO_TOKEN:
            return _result(self._step.refused(decision))
        return result

    def _admitted(self, req: Request, decision: Decision, *, cached: int, shared: int) -> None:
        blend = self.blend
        self._step.admitted(decision, prefill_tokens=req.extend_len, shared_tokens=shared)
        blend.pool.admitted(req, decision.slot, cached)
        blend.log.admitted(
            blend.planner, decision, rid=req.rid, prompt=len(req.origin_input_ids), cached=cached
        )

    def _withhold(self, prefill_tokens: int | None) -> int:
        """Leave the chunk budget no larger than what a request may prefill; how many tokens are kept back.

        They are given back for the memory side, unless a prompt was cut.
        """
        if self.rem_chunk_tokens is None or prefill_tokens is None:
            return 0
        withheld = max(self.rem_chunk_tokens - prefill_tokens, 0)
        self.rem_chunk_tokens -= withheld
        return withheld

    def add_chunked_req(self, req: Request) -> Request | None:
        """The next chunk of a prompt, no larger than what is free now.

        Upstream's budget has kept room for the rest of the prompt beside everyone's reserved output;
        ours relies on a forecast, so a chunk that does not fit waits, and nobody is admitted past it.
        """
        slot = self.blend.pool.slot(req)
        if slot != UNKNOWN and can_share(self.tree_cache, req):
            self._step.lead(slot)
        if not self._forecasts or self.rem_chunk_tokens is None:
            return self._continued(req, super().add_chunked_req(req))
        room = self._step.chunk_tokens(
            None if slot == UNKNOWN else slot, int(self.memory_budget.remaining_current)
        )
        if room <= 0:
            self.rem_chunk_tokens = 0
            return req
        self.chunked_req_limit = min(room, self.chunked_req_limit or room)
        unfinished = self._continued(req, super().add_chunked_req(req))
        if unfinished is not None:
            self.memory_budget.total_offset += len(req.full_untruncated_fill_ids) - (req.extend_end or 0)
            self.rem_chunk_tokens = 0  # upstream tracks one unfinished prompt, so nobody may follow it
        return unfinished

    def _continued(self, req: Request, unfinished: Request | None) -> Request | None:
        if self.can_run_list and self.can_run_list[-1] is req:
            self._step.continued(len(req.full_untruncated_fill_ids) - req.prefix_len, req.extend_len)
        return unfinished

    def preempt_to_schedule(self, req: Request) -> bool:
        """Upstream may retract running requests for one of higher priority."""
        offset = self.memory_budget.total_offset
        preempted = bool(super().preempt_to_schedule(req))
        if self._forecasts:  # their future was never in the offset
            self.memory_budget.total_offset = offset
            used = self.blend.policy.used_tokens()
            # What was admitted in this step has not taken its KV yet.
            used += sum(len(r.full_untruncated_fill_ids) - r.prefix_len for r in self.can_run_list)
            self._step.preempted(self.blend.pool.holders().slots.tolist(), used)
        return preempted

    # ------------------------------------------------------------- upstream's budgets

    def _check_prefill_budget(
        self, req: Request, *, total_tokens: int, **arguments: Any
    ) -> tuple[bool, int | None]:
        """Of the output in upstream's total, only the first token and those ahead are needed now."""
        if self._forecasts:
            total_tokens -= max(_reserved_output(req) - 1 - self._ahead, 0)
        allowed: tuple[bool, int | None] = super()._check_prefill_budget(
            req, total_tokens=total_tokens, **arguments
        )
        return allowed

    def _update_prefill_budget(
        self, prefix_len: int, extend_input_len: int, max_new_tokens: int, *args: Any, **kwargs: Any
    ) -> None:
        if self._forecasts:
            max_new_tokens = min(max_new_tokens, self._ahead)
        super()._update_prefill_budget(prefix_len, extend_input_len, max_new_tokens, *args, **kwargs)

    def _get_running_request_total_token_offset(self, req: Request) -> int:
        """Output tokens still to come; upstream weighs preemptions by them."""
        if not self._forecasts:
            return int(super()._get_running_request_total_token_offset(req))
        slot = self.blend.pool.slot(req)
        if slot == UNKNOWN:
            return int(super()._get_running_request_total_token_offset(req))
        return self._step.tokens_left(slot)


def _result(decision: Decision) -> AddReqResult:
    """What upstream is told of a request that stays in the queue."""
    if decision.verdict is not Verdict.ENOUGH:
        return AddReqResult.CONTINUE
    return AddReqResult.NO_TOKEN if decision.reason.lacks_memory else AddReqResult.OTHER


def _reserved_output(req: Request) -> int:
    """The output part of upstream's ``total_tokens``."""
    return min(max(req.sampling_params.max_new_tokens - len(req.output_ids), 0), int(CLIP_MAX_NEW_TOKENS))

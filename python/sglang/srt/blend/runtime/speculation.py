"""What upstream counts under speculative decoding: tokens that steps yield, KV that is allocated ahead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sglang.srt.blend.core.step.speculation import Speculation
from sglang.srt.blend.runtime.request import Request

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler


def speculation_of(scheduler: Scheduler) -> Speculation:
    """What a scheduler's decode steps verify for each request, and the KV that each holds ahead."""
    if scheduler.spec_algorithm.is_none():
        return Speculation()
    from sglang.srt.mem_cache.allocation_sizing import get_alloc_reserve_per_decode
    from sglang.srt.runtime_context import get_spec

    spec = get_spec()
    drafts = spec.speculative_num_draft_tokens or (spec.speculative_num_steps or 0) + 1
    return Speculation(draft_tokens=int(drafts), ahead=int(get_alloc_reserve_per_decode()))


def observe(speculation: Speculation, requests: Iterable[Request]) -> None:
    """Requests have gone on since they were observed last; each verification yields its drafts and one more.

    Upstream counts when it processes a step's result, with or without overlap: all ranks the same.
    """
    if not speculation.ahead:
        return
    drafts = verifications = 0
    for req in requests:
        seen_drafts, seen = getattr(req, "blend_verified", (0, 0))
        drafts += req.spec_num_correct_drafts - seen_drafts
        verifications += req.spec_verify_ct - seen
        req.blend_verified = req.spec_num_correct_drafts, req.spec_verify_ct
    speculation.observe(drafts + verifications, verifications)


def tokens_to_come(speculation: Speculation, requests: Iterable[Request]) -> int:
    """KV tokens that running requests will take before their next step, so that each holds its part ahead."""
    if not speculation.ahead:
        return 0
    kv = (req.kv for req in requests)
    return sum(max(k.kv_committed_len + speculation.ahead - k.kv_allocated_len, 0) for k in kv)

"""What a batch of upstream's scheduler has to compute, in the units of `StepWork`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

Work = dict[str, float]
"""Fields of `StepWork` by name; what is missing is 0."""


def batch_work(batch: ScheduleBatch) -> Work:
    """The work of a batch that decodes, prefills, or does both; as it is when the batch is launched."""
    if not batch.forward_mode.is_extend():
        return {"decode_rows": len(batch.reqs), "kv_tokens": int(batch.seq_lens_cpu.sum())}
    prefills = len(batch.reqs) - len(batch.decoding_reqs or ())  # in a mixed batch the others come last
    new, cached = batch.extend_lens[:prefills], batch.prefix_lens[:prefills]
    return {
        "prefill_tokens": sum(new),
        "decode_rows": len(batch.reqs) - prefills,
        "kv_tokens": sum(batch.extend_lens[prefills:]) + sum(batch.prefix_lens[prefills:]),
        "prefill_pairs": sum(n * c + n * (n + 1) / 2 for n, c in zip(new, cached, strict=True)),
        "finished_prefills": sum(not is_middle_chunk(req) for req in batch.reqs[:prefills]),
    }


def is_middle_chunk(req: Req) -> bool:
    """Whether the prompt of a request that is prefilled goes on in a later step."""
    return bool(req.extend_end < len(req.full_untruncated_fill_ids))

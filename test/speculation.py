"""A speculative algorithm without a draft model, for SGLang's own scheduler on a machine without a GPU.

    with speculating(checkpoint, accepts=3, schedule_policy="blend") as lone:
        ...

Registered as plugins register theirs. Upstream allocates KV for drafts, counts what is accepted and ends
answers; only the tokens are made up, `accepts` of them in each step of a request.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from helpers import LoneScheduler, lone_scheduler

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.utils import GenerationBatchResult

DRAFTS = 4  # tokens that a step verifies
NAME = "STAND_IN"


@contextlib.contextmanager
def speculating(checkpoint: Path | str, *, accepts: int, **server_args: Any) -> Iterator[LoneScheduler]:
    """A lone scheduler whose decode steps verify `DRAFTS` tokens of each request and accept some of them."""
    _register()
    defaults = {
        "attention_backend": "torch_native",  # never runs
        "speculative_algorithm": NAME,
        "speculative_num_draft_tokens": DRAFTS,
        "speculative_num_steps": DRAFTS - 1,
        "speculative_eagle_topk": 1,
    }
    from sglang.srt.mem_cache import allocation
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    with (
        # Two kernels of Triton's; the second moves the KV of accepted drafts, and there is none.
        mock.patch.object(allocation, "assign_req_to_token_pool_func", _assign_slots),
        mock.patch.object(MHATokenToKVPool, "_init_kv_copy_and_warmup"),
        lone_scheduler(checkpoint, **(defaults | server_args)) as lone,
    ):

        def forward(batch: ScheduleBatch, on_publish: Any = None, **_: Any) -> GenerationBatchResult:
            return _forward(lone, batch, accepts, on_publish)

        lone.scheduler.model_worker.forward_batch_generation = forward
        yield lone


def _forward(
    lone: LoneScheduler, batch: ScheduleBatch, accepts: int, on_publish: Any
) -> GenerationBatchResult:
    from sglang.srt.managers.utils import GenerationBatchResult
    from sglang.srt.speculative.ngram_info import NgramVerifyInput

    rows, prefill = len(batch.reqs), batch.forward_mode.is_extend()
    count = 1 if prefill else accepts
    tokens = torch.zeros(rows, DRAFTS, dtype=torch.int64)
    for i in range(count):
        tokens[:, i] = lone.forward(batch).next_token_ids
    accepted = torch.full((rows,), count, dtype=torch.int32)
    lengths = batch.seq_lens.clone() if prefill else batch.seq_lens + accepted
    if on_publish is not None:
        on_publish(lengths)
    return GenerationBatchResult(
        next_token_ids=tokens[:, 0].clone() if prefill else tokens.flatten(),
        accept_lens=accepted,
        new_seq_lens=lengths,
        next_draft_input=NgramVerifyInput(
            draft_token_num=DRAFTS,
            new_seq_lens=lengths,
            accept_tokens=tokens.flatten(),
            accept_lens=accepted,
        ),
        speculative_num_draft_tokens=DRAFTS,
        can_run_cuda_graph=False,
    )


def _assign_slots(
    rows: torch.Tensor,
    req_to_token: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    slots: torch.Tensor,
    _count: int,
) -> None:
    """Write new KV slots behind those that requests have."""
    parts = slots.split((end - start).tolist())
    for row, first, last, part in zip(rows.tolist(), start.tolist(), end.tolist(), parts, strict=True):
        req_to_token[row, first:last] = part.to(req_to_token.dtype)


def _register() -> None:
    from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
    from sglang.srt.speculative.spec_registry import CustomSpecAlgo, get_spec

    if get_spec(NAME) is not None:
        return

    class StandIn(CustomSpecAlgo):
        create_future_map = SpeculativeAlgorithm.create_future_map
        carries_draft_hidden_states = SpeculativeAlgorithm.carries_draft_hidden_states

        def is_ngram(self) -> bool:  # whose results carry no draft model's states
            return True

        def has_draft_kv(self) -> bool:
            return False

    class Worker(BaseSpecWorker):
        draft_worker = None

        def __init__(self, target_worker: Any, **_: Any) -> None:
            super().__init__()
            self._target_worker = target_worker

        def alloc_memory_pool(self, **_: Any) -> None:
            pass

        def init_attention_backends(self) -> None:
            pass

        def init_cuda_graphs(self) -> None:
            pass

    SpeculativeAlgorithm.register(NAME, supports_overlap=True, spec_class=StandIn)(lambda _args: Worker)

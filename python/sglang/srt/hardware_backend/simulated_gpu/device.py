"""The device: takes the scheduler's batches, says how long each would run, returns made-up tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from sglang.srt.blend.core.cost.engines import load_engine
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork
from sglang.srt.hardware_backend.simulated_gpu.step_log import StepLog
from sglang.srt.managers.utils import GenerationBatchResult

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

OUTPUT_TOKENS = "simulated_output_tokens"
"""Key in a request's ``custom_params``: tokens after which its answer ends with the end-of-sequence token.

The scheduler and its policy never look there: to them the length is as unknown as a real model's.
Without it a request runs to max_new_tokens.
"""

Work = dict[str, float]
"""Fields of `StepWork` by name; what is missing is 0."""


class SimulatedDevice:
    """Counts the work of each batch and advances a virtual clock by its modelled time.

    Args:
        model: times of forward passes.
        engine: name of how passes combine their parts.
        end_tokens: the model's end-of-sequence ids; other tokens are made up.
        lengths: output tokens by request id, beside those in ``custom_params``.
        step_log: file for one JSON line per step, "" for none.

    Attributes:
        clock: virtual seconds since the start: the sum of all steps, never wall time.
        steps: the log.
        retractions: prefills that recomputed a request which had run before.
    """

    def __init__(
        self,
        model: StepTimeModel,
        engine: str,
        *,
        end_tokens: Collection[int],
        lengths: Mapping[str, int] | None = None,
        step_log: str = "",
    ) -> None:
        self.model = model
        self.engine = engine
        self.clock = 0.0
        self.steps = StepLog()
        self.retractions = 0
        self.lengths = lengths or {}
        self._run = load_engine(engine)
        self._end = min(end_tokens, default=-1)
        self._filler = [token for token in range(100) if token not in end_tokens]
        self._file = open(step_log, "w") if step_log else None  # noqa: SIM115  (lives as long as we)

    def forward(self, batch: ScheduleBatch) -> GenerationBatchResult:
        """Advance the clock by a batch of upstream's scheduler and return a token for each of its rows."""
        extend = batch.forward_mode.is_extend()
        work, middle_chunks = self._extend_work(batch) if extend else (self._decode_work(batch), set())
        self._advance(work, len(batch.reqs))
        prefills = len(batch.reqs) - len(batch.decoding_reqs or ()) if extend else 0
        tokens = [
            self._filler[0] if row in middle_chunks else self._next_token(req, prefilled=row < prefills)
            for row, req in enumerate(batch.reqs)
        ]
        if batch.decoding_reqs:
            # Result processing asks for each request of a mixed batch whether it is among these.
            batch.decoding_reqs = _FastMembership(batch.decoding_reqs)
        return GenerationBatchResult(
            next_token_ids=torch.tensor(tokens, dtype=torch.int64), can_run_cuda_graph=False
        )

    def forward_split_prefill(self, batch: ScheduleBatch) -> GenerationBatchResult:
        """Only a device whose SMs are divided takes a prefill by layers."""
        raise RuntimeError(f"the {self.engine} engine does not split a prefill by layers")

    def _decode_work(self, batch: ScheduleBatch) -> Work:
        """Work of a batch in which every row decodes."""
        return {"decode_rows": len(batch.reqs), "kv_tokens": int(batch.seq_lens_cpu.sum())}

    def _extend_work(self, batch: ScheduleBatch) -> tuple[Work, set[int]]:
        """Work of a batch that prefills, and its rows whose prompt goes on in a later step."""
        decoding = len(batch.decoding_reqs or ())  # in a mixed batch they are the last rows
        prefills = len(batch.reqs) - decoding
        prefill_tokens = pairs = kv_tokens = finished = 0.0
        middle = set()
        for row, (new, cached) in enumerate(zip(batch.extend_lens, batch.prefix_lens, strict=True)):
            if row >= prefills:
                kv_tokens += cached + new
                continue
            prefill_tokens += new
            pairs += new * cached + new * (new + 1) / 2
            req = batch.reqs[row]
            if req.extend_end < len(req.full_untruncated_fill_ids):
                middle.add(row)
            else:
                finished += 1
        work = {
            "prefill_tokens": prefill_tokens,
            "decode_rows": decoding,
            "kv_tokens": kv_tokens,
            "prefill_pairs": pairs,
            "finished_prefills": finished,
        }
        return work, middle

    def _advance(self, work: Work, requests: int) -> None:
        """Move the clock by the seconds that this work takes, and log the step."""
        seconds = float(self._run(self.model, StepWork(**work)))
        self.clock += seconds
        self._log(seconds, work, requests)

    def _log(self, seconds: float, work: Work, requests: int) -> None:
        row = {"seconds": seconds, "requests": requests, **work}
        self.steps.append(row)
        if self._file is not None:
            self._file.write(json.dumps({"clock": self.clock, **row}) + "\n")
            self._file.flush()

    def _next_token(self, req: Req, *, prefilled: bool) -> int:
        """The request's next token: made up, or the end of its answer."""
        # Under overlap scheduling the scheduler has not seen the last token yet, so the count is kept here;
        # a prefill (also the one after a retraction) starts from what was committed.
        issued = (len(req.output_ids) if prefilled else req.simulated_issued) + 1
        req.simulated_issued = issued
        if prefilled:
            req.simulated_length = self._length(req)
            self.retractions += issued > 1
        if issued >= req.simulated_length:
            return self._end
        return self._filler[issued % len(self._filler)]

    def _length(self, req: Req) -> float:
        """Tokens after which the answer ends by itself, infinite when only max_new_tokens ends it."""
        params = req.sampling_params
        length = self.lengths.get(req.rid) or (params.custom_params or {}).get(OUTPUT_TOKENS)
        if length is None or params.ignore_eos:
            return math.inf
        if self._end < 0:
            raise ValueError(
                f"{OUTPUT_TOKENS}={length}: this model's config names no eos_token_id to end an answer with"
            )
        return float(length)


class _FastMembership(list[Any]):
    """A list of requests that answers `in` by identity, without a scan."""

    def __init__(self, requests: Iterable[Any]) -> None:
        super().__init__(requests)
        self._ids = {id(request) for request in self}

    def __contains__(self, request: object) -> bool:
        return id(request) in self._ids

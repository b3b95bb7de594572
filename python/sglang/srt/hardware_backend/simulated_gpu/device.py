"""The device: takes the scheduler's batches, says how long each would run, returns made-up tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from sglang.srt.blend.core.cost.engines import load_engine
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork
from sglang.srt.blend.runtime.step_work import Work, batch_work, is_middle_chunk
from sglang.srt.hardware_backend.simulated_gpu.step_log import StepLog
from sglang.srt.managers.utils import GenerationBatchResult

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

OUTPUT_TOKENS = "simulated_output_tokens"
"""Key in a request's ``custom_params``: tokens after which its answer ends with the end-of-sequence token.

The scheduler and its policy never look there: to them the length is as unknown as a real model's.
Without it a request runs to max_new_tokens.
"""


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
        self._advance(batch_work(batch), len(batch.reqs))
        prefills = len(batch.reqs) - len(batch.decoding_reqs or ()) if extend else 0
        tokens = [
            self._filler[0] if is_middle_chunk(req) else self._next_token(req, prefilled=True)
            for req in batch.reqs[:prefills]
        ]
        tokens += [self._next_token(req, prefilled=False) for req in batch.reqs[prefills:]]
        if batch.decoding_reqs:
            # Result processing asks for each request of a mixed batch whether it is among these.
            batch.decoding_reqs = _FastMembership(batch.decoding_reqs)
        return GenerationBatchResult(
            next_token_ids=torch.tensor(tokens, dtype=torch.int64), can_run_cuda_graph=False
        )

    def forward_split_prefill(self, batch: ScheduleBatch) -> GenerationBatchResult:
        """Only a device whose SMs are divided takes a prefill by layers."""
        raise RuntimeError(f"the {self.engine} engine does not split a prefill by layers")

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

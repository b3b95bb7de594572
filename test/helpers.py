"""A real SGLang ``Scheduler`` in the test's own process, on CPU, driven step by step.

    with lone_scheduler(checkpoint, schedule_policy="blend") as lone:
        rid = lone.submit([1, 2, 3], output=5)
        lone.run()
        assert len(lone.outputs[rid]) == 5

Everything is upstream's: request intake, radix tree, KV allocator, batches, result processing. Two things
are replaced: outputs are collected here instead of being sent over ZeroMQ, and with ``simulated=True``
the model's forward pass returns made-up tokens, ending each request after the output length that ``submit``
was given, which the scheduler cannot know in advance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sglang.srt.hardware_backend.simulated_gpu import lone_scheduler as driver

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.utils import GenerationBatchResult

EOS = 2  # token id with which the simulated device ends an answer


class LoneScheduler:
    """Submits requests to a scheduler, steps its event loop, collects what it answers.

    Attributes:
        scheduler: the live ``sglang.srt.managers.scheduler.Scheduler``.
        outputs: output token ids of every request seen so far, by request id.
        finished: finish reason (upstream's dict, ``{"type": "length" | "stop" | "abort", ...}``) by id.
        steps: forward passes run so far.
    """

    def __init__(self) -> None:
        self.scheduler: Scheduler
        self.outputs: dict[str, list[int]] = {}
        self.finished: dict[str, dict[str, Any]] = {}
        self.steps = 0
        self.output_length: dict[str, int] = {}
        self._issued: dict[str, int] = {}
        self._submitted = 0

    def submit(
        self,
        tokens: Sequence[int],
        output: int = 8,
        *,
        max_new_tokens: int | None = None,
        rid: str | None = None,
        sampling: dict[str, Any] | None = None,
        **request: Any,
    ) -> str:
        """Queue one request and return its id.

        Args:
            tokens: prompt token ids.
            output: tokens after which the simulated device ends the answer; unknown to the scheduler
                when below ``max_new_tokens`` (default: equal).
            sampling: further fields of ``SamplingParams`` (``ignore_eos``, ``json_schema``, ...).
            request: further fields of ``TokenizedGenerateReqInput`` (``priority``, ``extra_key``, ...).
        """
        rid = rid or f"r{self._submitted}"
        self._submitted += 1
        self.output_length[rid] = output
        self.outputs[rid] = []
        driver.submit(
            self.scheduler,
            rid,
            tokens,
            max_new_tokens=output if max_new_tokens is None else max_new_tokens,
            sampling=sampling,
            **request,
        )
        return rid

    def abort(self, rid: str = "", *, every: bool = False) -> None:
        """Abort the requests whose id starts with `rid` (upstream's rule), or every request."""
        from sglang.srt.managers.io_struct import AbortReq

        self.scheduler.process_input_requests([AbortReq(rid=rid, abort_all=every)])

    def flush(self) -> bool:
        """Flush the cache; False when upstream refuses because requests are pending."""
        return bool(self.scheduler.flush_cache())

    def step(self) -> ScheduleBatch | None:
        """One turn of upstream's event loop (normal or overlap); the batch it launched, or None."""
        batch = driver.step(self.scheduler)
        self.steps += batch is not None
        return batch

    @property
    def idle(self) -> bool:
        return bool(self.scheduler.is_fully_idle()) and not self.scheduler.grammar_manager.grammar_queue

    def run(self, max_steps: int = 20_000) -> int:
        """Step until nothing is left; the number of turns. Raises when `max_steps` do not suffice."""
        for turn in range(max_steps):
            if self.idle:
                return turn
            self.step()
        raise AssertionError(
            f"not idle after {max_steps} turns: {len(self.scheduler.waiting_queue)} waiting, "
            f"{len(self.scheduler.running_batch.reqs)} running"
        )

    def check_leaks(self) -> None:
        """Upstream's own checks: KV pool, request pool, radix tree. Raises when one complains.

        The busy check runs at any time between steps, the idle ones only on an idle scheduler.
        """
        from sglang.srt.environ import envs

        checker = self.scheduler.invariant_checker
        checker.self_check_during_busy()
        if self.idle:
            leaked, messages = checker._check_all_pools(self.scheduler.pool_stats_observer.get_pool_stats())
            assert not leaked, "\n".join(messages)
            with envs.SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE.override(True):
                checker._check_req_pool()
                checker._check_tree_cache()

    def deliver(self, payload: Any) -> None:
        """Keep what upstream sends to the detokenizer and to the tokenizer manager."""
        rids = getattr(payload, "rids", None)
        if rids is None:
            if getattr(payload, "rid", None) is not None:
                self.finished[payload.rid] = getattr(payload, "finished_reason", None) or {"type": "abort"}
            return
        tokens = payload.output_ids or payload.decode_ids
        for i, rid in enumerate(rids):
            if tokens is not None:
                self.outputs.setdefault(rid, []).extend(tokens[i])
            if payload.finished_reasons[i] is not None:
                self.finished[rid] = payload.finished_reasons[i]

    def forward(self, batch: ScheduleBatch, **_: Any) -> GenerationBatchResult:
        """The simulated device: one token a row, EOS where the answer is to end."""
        from sglang.srt.managers.utils import GenerationBatchResult

        decoding = set(batch.decoding_reqs or ()) if batch.forward_mode.is_extend() else None
        tokens = []
        for req in batch.reqs:
            if decoding is not None and req not in decoding:  # a prefill: count from what is committed
                self._issued[req.rid] = len(req.output_ids)
                if req.extend_end < len(req.full_untruncated_fill_ids):
                    tokens.append(3)  # a middle chunk's token is dropped
                    continue
            self._issued[req.rid] += 1
            last = self._issued[req.rid] >= self.output_length.get(req.rid, 1 << 60)
            tokens.append(
                EOS if last and not req.sampling_params.ignore_eos else 3 + self._issued[req.rid] % 97
            )
        return GenerationBatchResult(
            next_token_ids=torch.tensor(tokens, dtype=torch.int64), can_run_cuda_graph=False
        )


@contextlib.contextmanager
def lone_scheduler(
    checkpoint: Path | str, *, simulated: bool = True, **server_args: Any
) -> Iterator[LoneScheduler]:
    """Build a scheduler on CPU in this process; keyword arguments are those of ``ServerArgs``.

    Args:
        checkpoint: model folder, for example ``checkpoints.make_llama(tmp_path)``.
        simulated: replace the forward pass, see the module's docstring.
    """
    defaults = {
        "dtype": "float32",
        "max_total_tokens": 4096,
        "max_running_requests": 64,
        "chunked_prefill_size": 512,
    }
    if server_args.get("schedule_policy") == "blend":  # the flag is there whenever the plugin is
        defaults["blend_measure"] = "off"  # decisions do not depend on how fast this machine happens to be
    lone = LoneScheduler()
    with driver.lone_scheduler(checkpoint, lone.deliver, **(defaults | server_args)) as scheduler:
        lone.scheduler = scheduler
        scheduler.enable_skip_finishing_decode = scheduler.enable_overlap
        scheduler.model_config.hf_eos_token_id = {EOS}
        if simulated:
            scheduler.model_worker.forward_batch_generation = lone.forward
        yield lone

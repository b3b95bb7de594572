"""A real SGLang ``Scheduler`` in the test's own process, on CPU, driven step by step.

    with lone_scheduler(checkpoint, schedule_policy="blend") as lone:
        rid = lone.submit([1, 2, 3], output=5)
        lone.run()
        assert len(lone.outputs[rid]) == 5

Everything is upstream's: request intake, radix tree, KV allocator, batches, result processing. Two things
are replaced: outputs are collected here instead of being sent over ZeroMQ, and with ``simulated=True``
the model's forward pass returns made-up tokens (one millisecond a step), ending each request after the
output length that ``submit`` was given, which the scheduler cannot know in advance.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

EOS = 2  # token id with which the simulated device ends an answer


class LoneScheduler:
    """Submits requests to a scheduler, steps its event loop, collects what it answers.

    Attributes:
        scheduler: the live ``sglang.srt.managers.scheduler.Scheduler``.
        outputs: output token ids of every request seen so far, by request id.
        finished: finish reason (upstream's dict, ``{"type": "length" | "stop" | "abort", ...}``) by id.
        steps: forward passes run so far.
    """

    def __init__(self, scheduler: Any, *, simulated: bool):
        self.scheduler = scheduler
        self.outputs: dict[str, list[int]] = {}
        self.finished: dict[str, dict[str, Any]] = {}
        self.steps = 0
        self.simulated = simulated
        self.output_length: dict[str, int] = {}
        self._issued: dict[str, int] = {}
        self._submitted = 0
        self._collect_outputs()

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
        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
        from sglang.srt.sampling.sampling_params import SamplingParams

        rid = rid or f"r{self._submitted}"
        self._submitted += 1
        params = SamplingParams(
            max_new_tokens=output if max_new_tokens is None else max_new_tokens,
            temperature=0.0,
            **(sampling or {}),
        )
        params.normalize(None)
        self.output_length[rid] = output
        self.outputs[rid] = []
        fields = {
            "return_logprob": False,
            "logprob_start_len": -1,
            "top_logprobs_num": 0,
            "token_ids_logprob": None,
            "stream": False,
            "input_embeds": None,
            "mm_inputs": None,
            "token_type_ids": None,
            **request,
        }
        recv = TokenizedGenerateReqInput(
            rid=rid,
            input_text=None,
            input_ids=array("q", tokens),
            sampling_params=params,
            **fields,
        )
        self.scheduler.process_input_requests([recv])
        return rid

    def abort(self, rid: str = "", *, every: bool = False) -> None:
        """Abort the requests whose id starts with `rid` (upstream's rule), or every request."""
        from sglang.srt.managers.io_struct import AbortReq

        self.scheduler.process_input_requests([AbortReq(rid=rid, abort_all=every)])

    def flush(self) -> bool:
        """Flush the cache; False when upstream refuses because requests are pending."""
        return bool(self.scheduler.flush_cache())

    def step(self) -> Any:
        """One turn of upstream's event loop (normal or overlap); the batch it launched, or None."""
        s = self.scheduler
        plan = s.get_next_batch_to_run(running_batch=s.running_batch, last_batch=s.last_batch)
        s.running_batch = plan.running_batch
        batch = plan.batch_to_run
        s.cur_batch_for_debug = batch
        if s.enable_overlap:
            self._step_overlap(batch)
        elif batch:
            s.process_batch_result(batch, s.run_batch(batch))
        else:
            s.on_idle()
        s.last_batch = batch
        self.steps += batch is not None
        return batch

    def _step_overlap(self, batch: Any) -> None:
        s = self.scheduler
        alone = s.is_disable_overlap_for_batch(batch, last_batch=s.last_batch)
        if alone:
            s.process_batch_result(*s.result_queue.popleft())
        result = None
        if batch:
            result = s.run_batch(batch)
            s.result_queue.append((batch.copy(), result))
        if s.last_batch:
            if not alone:
                s.process_batch_result(*s.result_queue.popleft())
        elif batch is None:
            s.on_idle()
        if s.is_generation:
            s.launch_batch_sample_if_needed(result, batch)

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

    def _collect_outputs(self) -> None:
        """Take outputs where upstream would send them to the detokenizer and the tokenizer manager."""

        def deliver(payload: Any, *_: Any) -> None:
            rids = getattr(payload, "rids", None)
            if rids is None:
                reason = getattr(payload, "finished_reason", None)
                if getattr(payload, "rid", None) is not None:
                    self.finished[payload.rid] = reason or {"type": "abort"}
                return
            tokens = payload.output_ids or payload.decode_ids
            for i, rid in enumerate(rids):
                if tokens is not None:
                    self.outputs.setdefault(rid, []).extend(tokens[i])
                if payload.finished_reasons[i] is not None:
                    self.finished[rid] = payload.finished_reasons[i]

        channels = self.scheduler.ipc_channels
        channels.send_to_detokenizer.send_output = deliver
        channels.send_to_tokenizer.send_output = deliver

    def forward(self, batch: Any, **_: Any) -> Any:
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
    from sglang.srt.blend.runtime.plugin import ensure_registered
    from sglang.srt.distributed import bootstrap
    from sglang.srt.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.plugins import load_plugins
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import PortArgs

    load_plugins()
    ensure_registered()
    defaults = {
        "model_path": str(checkpoint),
        "device": "cpu",
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_total_tokens": 4096,
        "max_running_requests": 64,
        "chunked_prefill_size": 512,
        "disable_overlap_schedule": True,
        "sampling_backend": "pytorch",
        "log_level": "error",
        "random_seed": 0,
        # Upstream's watchdog would send SIGQUIT to the parent of the test run (make, say), five minutes after
        # a test has left its scheduler with a batch.
        "watchdog_timeout": 1e9,
    }
    args = Engine.server_args_class(**(defaults | server_args))
    args.resolve_once()
    args.check_server_args()
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    bootstrap._PARALLEL_INITIALISED = False
    try:
        scheduler = Scheduler(args, PortArgs.init_new(args))
        scheduler.idle_sleeper = None  # the portable CPU platform would wait for ZeroMQ messages when idle
        scheduler.enable_skip_finishing_decode = scheduler.enable_overlap
        scheduler.model_config.hf_eos_token_id = {EOS}
        lone = LoneScheduler(scheduler, simulated=simulated)
        if simulated:
            scheduler.model_worker.forward_batch_generation = lone.forward
        yield lone
    finally:
        destroy_model_parallel()
        destroy_distributed_environment()

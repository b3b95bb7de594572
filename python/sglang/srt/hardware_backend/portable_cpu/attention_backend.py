"""SGLang attention backend on the platform's kernels: decode, prefill and mixed chunks alike.

A decoding request is a prefill chunk of one token, so one kernel call serves whatever the scheduler put into
the step, and a step mixing both costs the sum of its parts. Paging is in the token table, so every page size
is the same to the kernel.
"""

from typing import TYPE_CHECKING, Any

import torch

from sglang.srt.hardware_backend.portable_cpu.attention_plan import AttentionPlan
from sglang.srt.hardware_backend.portable_cpu.kernels import SUPPORTED_DTYPES, get_kernels
from sglang.srt.hardware_backend.portable_cpu.names import ATTENTION_BACKEND
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MHATokenToKVPool

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


class PortableCpuAttnBackend(TorchNativeAttnBackend):
    """Causal self-attention over the paged KV cache.

    Sliding windows, logit soft-caps, grouped and multi-query heads and different key and value dimensions
    (MLA) are computed here. Cross-attention and encoder-only layers go to upstream's torch_native, which
    this class extends. What neither computes correctly is refused when the model loads or first runs it.
    """

    def __init__(self, model_runner: "ModelRunner") -> None:
        super().__init__(model_runner)
        if model_runner.kv_cache_dtype not in SUPPORTED_DTYPES:
            raise ValueError(
                f"--kv-cache-dtype: {model_runner.kv_cache_dtype} is not supported by --attention-backend "
                f"{ATTENTION_BACKEND}; use auto or bf16"
            )
        if getattr(model_runner, "attention_chunk_size", None):
            raise ValueError(
                f"--attention-backend {ATTENTION_BACKEND} does not support chunked local attention, which "
                "this model uses"
            )
        self.kernels = get_kernels()
        # Only the plain pool's layout is known to store_kv; other pools store by their own method.
        pool = self.token_to_kv_pool
        self._plain_pool = type(pool) is MHATokenToKVPool and pool.kv_cache_layout == "nhd"
        self._sequences: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self._plans: dict[tuple[int, bool], AttentionPlan] = {}
        self._window_table: torch.Tensor | None = None

    def init_forward_metadata(self, forward_batch: "ForwardBatch") -> None:
        """Once per step: sequence lengths as the kernels want them; plans follow on first use."""
        super().init_forward_metadata(forward_batch)
        self._plans = {}
        self._window_table = None
        self._sequences = None
        mode = forward_batch.forward_mode
        if mode.is_idle():
            return
        if mode.is_target_verify() or mode.is_draft_extend_v2():
            raise NotImplementedError(
                f"--attention-backend {ATTENTION_BACKEND} does not support speculative decoding; "
                "remove --speculative-algorithm"
            )
        lengths = forward_batch.seq_lens.long()
        extends = torch.ones_like(lengths) if mode.is_decode() else forward_batch.extend_seq_lens.long()
        self._sequences = (forward_batch.req_pool_indices.long(), lengths, extends)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: "RadixAttention",
        forward_batch: "ForwardBatch",
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        if self._is_upstreams(layer, forward_batch):
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache, kwargs)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: "RadixAttention",
        forward_batch: "ForwardBatch",
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        if self._is_upstreams(layer, forward_batch):
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache, kwargs)

    def _is_upstreams(self, layer: "RadixAttention", forward_batch: "ForwardBatch") -> bool:
        return (
            layer.is_cross_attention
            or layer.attn_type == AttentionType.ENCODER_ONLY
            or forward_batch.encoder_lens is not None
        )

    def _forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: "RadixAttention",
        forward_batch: "ForwardBatch",
        save_kv_cache: bool,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        _refuse_unsupported(layer, kwargs)
        q = q.view(q.shape[0], layer.tp_q_head_num, layer.qk_head_dim)
        if save_kv_cache and k is not None and v is not None:
            self._store(layer, forward_batch, k, v)
        pool = self.token_to_kv_pool
        k_cache = pool.get_key_buffer(layer.layer_id)
        table, plan = self.table_and_plan(layer)
        out = q.new_empty(q.shape[0], layer.tp_q_head_num, layer.v_head_dim)
        self.kernels.attention(
            q,
            k_cache,
            pool.get_value_buffer(layer.layer_id),
            out,
            table,
            plan,
            scale=layer.scaling,
            logit_cap=layer.logit_cap or 0.0,
            window=-1 if layer.sliding_window_size is None else layer.sliding_window_size,
        )
        return out.flatten(1)

    def _store(
        self, layer: "RadixAttention", forward_batch: "ForwardBatch", k: torch.Tensor, v: torch.Tensor
    ) -> None:
        pool = self.token_to_kv_pool
        if self._plain_pool and layer.k_scale is None:
            index = layer.layer_id - pool.start_layer
            self.kernels.store_kv(
                k.view(-1, layer.tp_k_head_num, layer.qk_head_dim),
                v.view(-1, layer.tp_v_head_num, layer.v_head_dim),
                pool.k_buffer[index],
                pool.v_buffer[index],
                forward_batch.out_cache_loc,
            )
            return
        pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc), k, v)

    @property
    def has_plain_pool(self) -> bool:
        """Whether each layer's cache is one tensor, complete at any time: nothing loads layer by layer."""
        return self._plain_pool and self.token_to_kv_pool.layer_transfer_counter is None

    def table_and_plan(self, layer: "RadixAttention") -> tuple[torch.Tensor, AttentionPlan]:
        """Token table and plan of this step for a layer's head grouping."""
        assert self._sequences is not None, "init_forward_metadata() must run before the forward pass"
        rows, lengths, extends = self._sequences
        windowed = self.use_sliding_window_kv_pool and self.token_to_kv_pool.layers_mapping[layer.layer_id][1]
        group = layer.tp_q_head_num // layer.tp_k_head_num
        plan = self._plans.get((group, windowed))
        if plan is None:
            # The sliding-window pool has its own slots: translate this batch's rows, once per step.
            table_rows = torch.arange(rows.shape[0]) if windowed else rows
            plan = self.kernels.plan_attention(table_rows, lengths, extends, queries_per_kv_head=group)
            self._plans[group, windowed] = plan
        if not windowed:
            return self.req_to_token_pool.req_to_token, plan
        if self._window_table is None:
            used = self.req_to_token_pool.req_to_token[rows, : int(lengths.max())]
            translated = self.token_to_kv_pool.translate_loc_from_full_to_swa(used)
            self._window_table = translated.to(torch.int32).contiguous()
        return self._window_table, plan


def _refuse_unsupported(layer: "RadixAttention", kwargs: dict[str, Any]) -> None:
    """Raise NotImplementedError for what would silently be computed wrongly."""
    problem = None
    if any(value is not None for value in kwargs.values()):
        problem = "the attention arguments " + ", ".join(k for k, x in kwargs.items() if x is not None)
    elif layer.attn_type == AttentionType.DECODER_BIDIRECTIONAL:
        problem = "bidirectional attention"
    elif layer.logit_cap and layer.logit_capping_method != "tanh":
        problem = f"logit capping by {layer.logit_capping_method!r}"
    elif layer.xai_temperature_len > 0:
        problem = "temperature scaling by position"
    if problem:
        raise NotImplementedError(
            f"--attention-backend {ATTENTION_BACKEND} does not support {problem} (layer {layer.layer_id})"
        )

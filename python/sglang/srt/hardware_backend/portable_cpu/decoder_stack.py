"""All decoder layers of a step in one call, for models whose layers are plain.

A decoding step of a small model spends nearly as long in Python, between its few hundred operators, as in
them. Where every layer is upstream's Llama (or Qwen2) layer, unquantised, on one rank and on packed weights,
the compiled ``decoder_layers`` runs the same operators in the same order. All else takes upstream's path.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sglang.srt.hardware_backend.portable_cpu.fused_ops import covers_norm, covers_rotation
from sglang.srt.hardware_backend.portable_cpu.kernels import SUPPORTED_DTYPES, CompiledKernels, DecoderWeights
from sglang.srt.hardware_backend.portable_cpu.packed_linear import PackedLinearMethod, packed_weight

if TYPE_CHECKING:
    from sglang.srt.hardware_backend.portable_cpu.attention_backend import PortableCpuAttnBackend
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

logger = logging.getLogger(__name__)

_STACK = "portable_cpu_decoder_stack"

# Upstream's decoders by class, with the class of their layers: subclasses may compute something else.
PLAIN_DECODERS = {
    "sglang.srt.models.llama.LlamaModel": "LlamaDecoderLayer",
    "sglang.srt.models.qwen2.Qwen2Model": "Qwen2DecoderLayer",
}


@dataclass(frozen=True, slots=True)
class DecoderStack:
    """A model's layers as ``decoder_layers`` takes them; valid until its weights change."""

    backend: "PortableCpuAttnBackend"
    kernels: CompiledKernels
    weights: DecoderWeights
    first_layer: Any  # its RadixAttention stands for all: they differ in nothing but the layer's number

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor, batch: "ForwardBatch") -> torch.Tensor:
        """The final norm's output, (tokens, size)."""
        table, plan = self.backend.table_and_plan(self.first_layer)
        return self.kernels.decoder_layers(hidden, positions, batch.out_cache_loc, self.weights, table, plan)


def class_name(model: torch.nn.Module) -> str:
    """Dotted name of a module's class."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def forget_stacks(model: torch.nn.Module) -> None:
    """The weights have changed: build again at the next step."""
    for module in model.modules():
        module.__dict__.pop(_STACK, None)


def forward(
    original: Callable[..., Any],
    model: Any,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    forward_batch: "ForwardBatch",
    input_embeds: torch.Tensor | None = None,
    pp_proxy_tensors: Any = None,
) -> Any:
    """Around a decoder's ``forward``."""
    stack: DecoderStack | None = None
    if _is_plain_step(model, positions, forward_batch):
        # Not a module's attribute: PyTorch would look it up among parameters and submodules.
        if _STACK not in model.__dict__:
            model.__dict__[_STACK] = _build(model)
        stack = model.__dict__[_STACK]
    if stack is None or not stack.backend.has_plain_pool:
        return original(model, input_ids, positions, forward_batch, input_embeds, pp_proxy_tensors)
    hidden = model.embed_tokens(input_ids) if input_embeds is None else input_embeds
    return stack.forward(hidden.contiguous(), positions, forward_batch)


def _is_plain_step(model: Any, positions: torch.Tensor, batch: "ForwardBatch") -> bool:
    mode = batch.forward_mode
    return (
        (mode.is_decode() or mode.is_extend())
        and positions.ndim == 1
        and positions.dtype == torch.int64
        and not model.layers_to_capture
        and batch.encoder_lens is None
        and batch.out_cache_loc.shape == positions.shape
        and not batch.can_run_tbo
    )


def _build(model: Any) -> DecoderStack | None:
    """The stack, or None where something about the model is not plain."""
    from sglang.srt.hardware_backend.portable_cpu.attention_backend import PortableCpuAttnBackend
    from sglang.srt.model_executor.forward_context import get_attn_backend

    backend = get_attn_backend()
    layers = list(model.layers)
    if (
        type(backend) is not PortableCpuAttnBackend
        or not isinstance(backend.kernels, CompiledKernels)
        or not backend.has_plain_pool
        or PLAIN_DECODERS.get(class_name(model)) is None
        or hasattr(model.config, "scale_emb")
        or model.pp_group.world_size > 1
        or not all(_is_plain_layer(layer, PLAIN_DECODERS[class_name(model)]) for layer in layers)
        or not covers_norm(model.norm, model.norm.weight.dtype)
        or any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    ):
        return None
    first = layers[0].self_attn
    norms = [norm for layer in layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    norms.append(model.norm)
    if (
        any(_settings(layer) != _settings(layers[0]) for layer in layers)
        or len({norm.variance_epsilon for norm in norms}) > 1
    ):
        return None
    products = [product for layer in layers for product in _products(layer)]
    pool = backend.token_to_kv_pool
    places = [layer.self_attn.attn.layer_id - pool.start_layer for layer in layers]
    weights = DecoderWeights(
        norms=[norm.weight.detach() for norm in norms],
        products=[packed_weight(product) for product in products],
        biases=[None if product.bias is None else product.bias.detach() for product in products],
        k_caches=[pool.k_buffer[place] for place in places],
        v_caches=[pool.v_buffer[place] for place in places],
        cos_sin=first.rotary_emb.cos_sin_cache,
        heads=first.attn.tp_q_head_num,
        head_dim=first.attn.qk_head_dim,
        scale=first.attn.scaling,
        eps=norms[0].variance_epsilon,
        neox=first.rotary_emb.is_neox_style,
    )
    logger.info("%d decoder layers run in one call.", len(layers))
    return DecoderStack(backend, backend.kernels, weights, first.attn)


def _products(layer: Any) -> tuple[Any, Any, Any, Any]:
    """The layer's products in the order in which they are computed."""
    return layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj


def _settings(layer: Any) -> tuple[Any, ...]:
    """What one call has in common for all layers."""
    attention, rotary = layer.self_attn.attn, layer.self_attn.rotary_emb
    return (
        (attention.tp_q_head_num, attention.tp_k_head_num, attention.qk_head_dim, attention.scaling),
        (rotary.cos_sin_cache.data_ptr(), rotary.is_neox_style),
    )


def _is_plain_layer(layer: Any, name: str) -> bool:
    from sglang.srt.layers.activation import SiluAndMul
    from sglang.srt.layers.radix_attention import AttentionType

    if type(layer).__name__ != name:
        return False
    attention, dtype = layer.self_attn.attn, layer.input_layernorm.weight.dtype
    return (
        dtype in SUPPORTED_DTYPES
        and all(covers_norm(norm, dtype) for norm in (layer.input_layernorm, layer.post_attention_layernorm))
        and all(
            type(product.quant_method) is PackedLinearMethod
            and product.weight.numel() == product.input_size * product.output_size  # on one rank
            and not product.skip_bias_add
            and product.weight.dtype == dtype
            for product in _products(layer)
        )
        and type(layer.mlp.act_fn) is SiluAndMul
        and covers_rotation(layer.self_attn.rotary_emb)
        and layer.self_attn.rotary_emb.head_size == attention.qk_head_dim
        and attention.qk_head_dim == attention.v_head_dim
        and attention.attn_type == AttentionType.DECODER
        and not attention.is_cross_attention
        and attention.sliding_window_size in (None, -1)
        and not attention.logit_cap
        and attention.k_scale is None
        and attention.xai_temperature_len <= 0
    )

"""What the cost model needs to know of a model, read from its Hugging Face config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DTYPE_BYTES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "bf16": 2.0,
    "float16": 2.0,
    "fp8_e4m3": 1.0,
    "fp8_e5m2": 1.0,
    "float8_e4m3fn": 1.0,
    "float8_e5m2": 1.0,
    "fp4_e2m1": 0.5,
}
# Bits per weight of methods whose configs do not say.
_METHOD_BITS = {"fp8": 8, "fbgemm_fp8": 8, "mxfp4": 4, "bitsandbytes": 8}
# Architectures whose MLP is two matrices (up, down) instead of the gated three.
_UNGATED = {"gpt2", "gpt_neox", "opt", "phi", "starcoder2", "falcon", "nemotron"}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one tensor-parallel rank's share of a decoder, as paper 4.1 counts them.

    >>> llama_3_8b = {
    ...     "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256,
    ...     "num_attention_heads": 32, "num_key_value_heads": 8, "torch_dtype": "bfloat16",
    ... }
    >>> whole = ModelShape.from_config(llama_3_8b)
    >>> f"{whole.gemm_params / 1e9:.2f} billion, {whole.kv_bytes_per_token / 1024:.0f} KiB per token"
    '7.50 billion, 128 KiB per token'
    >>> half = ModelShape.from_config(llama_3_8b, tensor_parallel=2)
    >>> half.gemm_params / whole.gemm_params, half.kv_bytes_per_token / whole.kv_bytes_per_token
    (0.5, 0.5)

    Attributes:
        gemm_params: parameters that multiply every token (P): active experts, output head, no input
            embedding.
        weight_bytes: bytes that one forward pass reads when it touches every expert (no input embedding).
        layers: decoder layers (L).
        attention_width: heads * head_dim (H in the p^2 term); mean of the QK and V widths for MLA.
        kv_bytes: KV cache bytes per token of one layer (2 * H_kv * B; the latent for MLA).
        window_layers: how many of `layers` attend to a sliding window only.
        window: tokens in that window, 0 without one.
        head_params: part of `gemm_params` in the output head.
        hidden: features of the hidden state, which tensor-parallel ranks reduce.
        tensor_parallel: ranks that share the model.
    """

    gemm_params: float
    weight_bytes: float
    layers: int
    attention_width: float
    kv_bytes: float
    window_layers: int = 0
    window: int = 0
    head_params: float = 0.0
    hidden: int = 0
    tensor_parallel: int = 1

    @property
    def kv_bytes_per_token(self) -> float:
        """KV cache bytes that one token occupies in all layers of the rank."""
        return self.kv_bytes * self.layers

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, tensor_parallel: int = 1, kv_dtype: str = "auto"
    ) -> ModelShape:
        """The shape of a Llama, Mistral, Qwen2/3, Gemma, Mixtral, Qwen-MoE or DeepSeek, or of their kin.

        Multimodal configs are read through their `text_config`. Tensor parallelism divides weights and
        KV heads (heads are replicated when there are fewer than ranks); the MLA latent is replicated.

        Args:
            config: contents of the model's config.json.
            tensor_parallel: ranks that share the model.
            kv_dtype: "auto" takes the model's dtype; otherwise SGLang's --kv-cache-dtype names.

        Raises:
            ValueError: a size that is needed is missing, a dtype unknown, or tensor_parallel below 1.
        """
        if tensor_parallel < 1:
            raise ValueError(f"tensor_parallel must be at least 1, got {tensor_parallel}")
        text: Mapping[str, Any] = {**config, **(config.get("text_config") or config.get("llm_config") or {})}
        reader = _ConfigReader(text)
        weight_bytes = reader.weight_bytes()
        kv_element = _dtype_bytes(kv_dtype) if kv_dtype != "auto" else _dtype_bytes(reader.dtype)
        active, total = reader.mlp_params()
        attention = reader.attention_params()
        head = reader.size("hidden_size") * reader.size("vocab_size")
        window_layers, window = reader.sliding_window()
        return cls(
            gemm_params=(attention + active + head) / tensor_parallel,
            weight_bytes=((attention + total) * weight_bytes + head * _dtype_bytes(reader.dtype))
            / tensor_parallel,
            layers=reader.layers,
            attention_width=reader.attention_width() / tensor_parallel,
            kv_bytes=reader.kv_features(tensor_parallel) * kv_element,
            window_layers=window_layers,
            window=window,
            head_params=head / tensor_parallel,
            hidden=reader.hidden,
            tensor_parallel=tensor_parallel,
        )


def _dtype_bytes(name: str) -> float:
    try:
        return _DTYPE_BYTES[name.removeprefix("torch.")]
    except KeyError:
        raise ValueError(f"dtype {name!r}: unknown; choose one of {', '.join(_DTYPE_BYTES)}") from None


class _ConfigReader:
    """Names differ between architectures; the quantities do not."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
        self.layers = self.size("num_hidden_layers")
        self.hidden = self.size("hidden_size")
        self.heads = self.size("num_attention_heads")
        self.head_dim = int(config.get("head_dim") or self.hidden // self.heads)
        self.kv_heads = int(config.get("num_key_value_heads") or self.heads)
        self.latent = int(config.get("kv_lora_rank") or 0)

    def size(self, name: str) -> int:
        aliases = {
            "num_hidden_layers": ("n_layer", "num_layers"),
            "hidden_size": ("n_embd", "d_model"),
            "num_attention_heads": ("n_head", "num_heads"),
        }
        for key in (name, *aliases.get(name, ())):
            value = self.config.get(key)
            if value:
                return int(value)
        raise ValueError(f"model config: {name} is missing; is this the config.json of a decoder?")

    def weight_bytes(self) -> float:
        """Bytes per weight of the layers; quantised checkpoints say how many bits."""
        quantization = self.config.get("quantization_config") or {}
        bits = quantization.get("bits") or _METHOD_BITS.get(str(quantization.get("quant_method")))
        for group in (quantization.get("config_groups") or {}).values():  # compressed-tensors
            bits = bits or (group.get("weights") or {}).get("num_bits")
        if quantization.get("load_in_4bit"):
            bits = 4
        return float(bits) / 8 if bits else _dtype_bytes(self.dtype)

    def attention_params(self) -> float:
        if not self.latent:
            projected = (2 * self.heads + 2 * self.kv_heads) * self.head_dim
            return float(self.hidden * projected * self.layers)
        rope, nope = self.size("qk_rope_head_dim"), self.size("qk_nope_head_dim")
        value, query_rank = self.size("v_head_dim"), int(self.config.get("q_lora_rank") or 0)
        query_out = self.heads * (nope + rope)
        query = (self.hidden + query_out) * query_rank if query_rank else self.hidden * query_out
        latent = self.hidden * (self.latent + rope) + self.latent * self.heads * (nope + value)
        return float((query + latent + self.heads * value * self.hidden) * self.layers)

    def attention_width(self) -> float:
        if not self.latent:
            return float(self.heads * self.head_dim)
        qk = self.size("qk_rope_head_dim") + self.size("qk_nope_head_dim")
        return self.heads * (qk + self.size("v_head_dim")) / 2

    def kv_features(self, tensor_parallel: int) -> float:
        """KV elements per token and layer on one rank, keys and values together."""
        if self.latent:
            return float(self.latent + self.size("qk_rope_head_dim"))
        return 2.0 * max(self.kv_heads / tensor_parallel, 1.0) * self.head_dim

    def mlp_params(self) -> tuple[float, float]:
        """(active, total) MLP parameters of all layers; equal without experts."""
        config, hidden = self.config, self.hidden
        matrices = 2 if config.get("model_type") in _UNGATED else 3
        dense_width = int(config.get("intermediate_size") or config.get("n_inner") or 4 * hidden)
        dense = matrices * hidden * dense_width
        experts = int(
            config.get("num_local_experts")
            or config.get("n_routed_experts")
            or config.get("num_experts")
            or 0
        )
        if not experts:
            return float(dense * self.layers), float(dense * self.layers)
        chosen = int(config.get("num_experts_per_tok") or 1)
        expert = matrices * hidden * int(config.get("moe_intermediate_size") or dense_width)
        shared_width = int(config.get("shared_expert_intermediate_size") or 0)
        shared = matrices * hidden * shared_width + expert * int(config.get("n_shared_experts") or 0)
        first_dense = int(config.get("first_k_dense_replace") or 0)
        frequency = config.get("moe_layer_freq") or 1
        step = int(config.get("decoder_sparse_step") or 1)
        dense_only = set(config.get("mlp_only_layers") or ())
        sparse = sum(
            layer >= first_dense
            and layer not in dense_only
            and (layer + 1) % step == 0
            and bool(frequency[layer] if isinstance(frequency, list) else layer % frequency == 0)
            for layer in range(self.layers)
        )
        router = hidden * experts
        active = sparse * (chosen * expert + shared + router) + (self.layers - sparse) * dense
        total = sparse * (experts * expert + shared + router) + (self.layers - sparse) * dense
        return float(active), float(total)

    def sliding_window(self) -> tuple[int, int]:
        """(layers with a window, tokens in it)."""
        config = self.config
        window = int(config.get("sliding_window") or 0)
        if not window or config.get("use_sliding_window") is False:
            return 0, 0
        kinds = config.get("layer_types")
        if kinds:
            layers = sum(kind == "sliding_attention" for kind in kinds)
        elif config.get("sliding_window_pattern"):
            pattern = int(config["sliding_window_pattern"])
            layers = self.layers - self.layers // pattern
        elif config.get("model_type") == "gemma2":
            layers = (self.layers + 1) // 2
        else:
            layers = max(self.layers - int(config.get("max_window_layers") or 0), 0)
        return (layers, window) if layers else (0, 0)

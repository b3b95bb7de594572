"""Models as their public config.json describes them, as far as tests look at it."""

from typing import Any

Config = dict[str, Any]


def config(
    hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **more: Any
) -> Config:
    """A decoder in bfloat16; further fields as the model's config.json has them."""
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "torch_dtype": "bfloat16",
        **more,
    }


LLAMA_3_8B = config(
    4096,
    14336,
    32,
    32,
    8,
    128256,
    architectures=["LlamaForCausalLM"],
    model_type="llama",
    max_position_embeddings=131072,
    eos_token_id=128001,
)
LLAMA_2_7B = config(4096, 11008, 32, 32, 32, 32000)
LLAMA_3_70B = config(8192, 28672, 80, 64, 8, 128256)
QWEN_7B = config(3584, 18944, 28, 28, 4, 152064, sliding_window=131072, use_sliding_window=False)
QWEN_72B = config(8192, 29568, 80, 64, 8, 152064)
MISTRAL_7B = config(4096, 14336, 32, 32, 8, 32000, sliding_window=4096, model_type="mistral")
MIXTRAL = config(4096, 14336, 32, 32, 8, 32000, num_local_experts=8, num_experts_per_tok=2)
QWEN3_30B_A3B = config(
    2048,
    6144,
    48,
    32,
    4,
    151936,
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    moe_intermediate_size=768,
)
GEMMA_2_9B = config(3584, 14336, 42, 16, 8, 256000, head_dim=256, sliding_window=4096, model_type="gemma2")
GEMMA_3_4B = {"model_type": "gemma3", "text_config": config(
    2560, 10240, 34, 8, 4, 262208, head_dim=256, sliding_window=1024, sliding_window_pattern=6
)}  # fmt: skip
MQA = config(4096, 16384, 28, 16, 1, 256000, head_dim=256)
_MLA = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
DEEPSEEK_V2 = config(
    5120, 12288, 60, 128, 128, 102400, **_MLA, n_routed_experts=160, num_experts_per_tok=6,
    n_shared_experts=2, moe_intermediate_size=1536, first_k_dense_replace=1, moe_layer_freq=1,
)  # fmt: skip
DEEPSEEK_V3 = config(
    7168, 18432, 61, 128, 128, 129280, **_MLA, n_routed_experts=256, num_experts_per_tok=8,
    n_shared_experts=1, moe_intermediate_size=2048, first_k_dense_replace=3, moe_layer_freq=1,
    quantization_config={"quant_method": "fp8"},
)  # fmt: skip

SMOLLM2 = config(576, 1536, 30, 9, 3, 49152)
"""The embedded model of the CPU benchmark."""

TINY_LLAMA = config(64, 128, 2, 4, 2, 128, model_type="llama")

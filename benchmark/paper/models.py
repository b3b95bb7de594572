"""The models of the paper's evaluation: what their public config.json says, and on how many GPUs they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PaperModel:
    """A model and its tensor-parallel degree.

    Attributes:
        config: Hugging Face config, as far as shapes go.
    """

    config: dict[str, Any]
    tensor_parallel: int = 1


def _llama(
    hidden: int, mlp: int, heads: int, kv_heads: int, layers: int, vocabulary: int, end: int
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "eos_token_id": end,
        "max_position_embeddings": 131072,  # the traces' longest answers exceed what some were trained for
        "torch_dtype": "bfloat16",
    }


def _qwen2(*sizes: int) -> dict[str, Any]:
    return _llama(*sizes) | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


MODELS: dict[str, PaperModel] = {
    "llama-3-8b": PaperModel(_llama(4096, 14336, 32, 8, 32, 128256, 128001)),
    "llama-2-7b": PaperModel(_llama(4096, 11008, 32, 32, 32, 32000, 2)),
    "qwen-2.5-7b": PaperModel(_qwen2(3584, 18944, 28, 4, 28, 152064, 151643)),
    "llama-3-70b": PaperModel(_llama(8192, 28672, 64, 8, 80, 128256, 128001), 8),
    "qwen-2.5-72b": PaperModel(_qwen2(8192, 29568, 64, 8, 80, 152064, 151643), 8),
    "deepseek-67b": PaperModel(_llama(8192, 22016, 64, 8, 95, 102400, 100001), 8),
}

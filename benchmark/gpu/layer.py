"""The decoder layer that is measured: its matrices and heads, and what the cost model knows of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sglang.batch.calibrate.measure import layer_matrices
from sglang.batch.usage import BadUsage
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.runtime.device_speed import Matrix

LLAMA_3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
}
"""Sizes of its public config.json."""

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
}
"""A layer that a CPU computes at once."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One dense decoder layer.

    Attributes:
        matrices: features in and out of each weight matrix, as SGLang multiplies them.
        hidden: features of the hidden state.
        heads, kv_heads, head_dim: of attention.
        itemsize: bytes of an element of weights and KV cache.
    """

    matrices: tuple[Matrix, ...]
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    itemsize: int = 2

    @classmethod
    def of(cls, config: Mapping[str, Any], itemsize: int = 2) -> Layer:
        """The layer that a model's config.json describes.

        Raises:
            BadUsage: the config is not a decoder's.
        """
        text = SimpleNamespace(**config.get("text_config", config))
        text.get_text_config = lambda: text
        matrices, _ = layer_matrices(text)
        heads = text.num_attention_heads
        return cls(
            matrices=tuple(matrices),
            hidden=text.hidden_size,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            itemsize=itemsize,
        )

    @property
    def params(self) -> int:
        return sum(a * b for a, b in self.matrices)

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        return 2 * self.kv_heads * self.head_dim * self.itemsize

    def shape(self, ranks: int = 1) -> ModelShape:
        """A model of this layer alone, without an output head.

        Args:
            ranks: that share it; only what they reduce depends on them.
        """
        return ModelShape(
            gemm_params=float(self.params),
            weight_bytes=float(self.params * self.itemsize),
            layers=1,
            attention_width=float(self.heads * self.head_dim),
            kv_bytes=float(self.kv_bytes),
            hidden=self.hidden,
            tensor_parallel=ranks,
        )


def read_config(model_path: str) -> dict[str, Any]:
    """Read config.json, which `model_path` is or holds.

    Raises:
        BadUsage: it cannot be read.
    """
    path = Path(model_path)
    try:
        config: dict[str, Any] = json.loads((path / "config.json" if path.is_dir() else path).read_text())
    except (OSError, ValueError) as error:
        raise BadUsage(f"--model-path {model_path}: no config.json of a model ({error})") from error
    return config

"""Upstream's view of a model's config, as the cost model reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig


def config_dict(model_config: ModelConfig) -> dict[str, Any]:
    """The model's Hugging Face config with the dtype it runs at, for `ModelShape.from_config`.

    The language model's sizes stand under `text_config`, those of an encoder where the config has them.
    """
    config: dict[str, Any] = model_config.hf_config.to_dict()
    text = model_config.hf_text_config.to_dict()
    return {**config, "text_config": {**text, "dtype": dtype_name(model_config.dtype)}}


def dtype_name(dtype: object) -> str:
    """The name of a torch.dtype in configs, for example "bfloat16"."""
    return str(dtype).removeprefix("torch.")

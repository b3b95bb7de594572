"""Compute seconds of a vision (or audio) encoder, which the planner counts beside the decoder's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DEPTH = ("depth", "num_hidden_layers", "num_layers", "encoder_layers", "layers")
_WIDTH = ("embed_dim", "hidden_size", "width", "d_model")
_MERGE = ("spatial_merge_size", "merge_size")


@dataclass(frozen=True, slots=True)
class EncoderCost:
    """A transformer encoder that turns patches into tokens of the language model.

    Attributes:
        params: parameters that every patch multiplies.
        patches_per_token: patches that one token of the prompt stands for.
        flops: FLOP/s of the hardware.
    """

    params: float
    patches_per_token: float
    flops: float

    def seconds(self, tokens: int) -> float:
        """Compute seconds to encode media that take `tokens` tokens of the prompt."""
        return 2.0 * self.params * self.patches_per_token * tokens / self.flops

    @classmethod
    def from_config(cls, config: Mapping[str, Any], flops: float) -> EncoderCost | None:
        """Read the encoder in a model's config; None when there is none, or its sizes are not given.

        Attention and MLP of a layer are 4 and 8 times width squared unless ``intermediate_size`` or
        ``mlp_ratio`` says otherwise. Attention among the patches of one image is left out: it is small
        beside the GEMMs at the usual image sizes.
        """
        vision = config.get("vision_config") or config.get("audio_config")
        if not isinstance(vision, Mapping):
            return None
        depth, width = _first(vision, _DEPTH), _first(vision, _WIDTH)
        if not depth or not width:
            return None
        inner = float(vision.get("intermediate_size") or float(vision.get("mlp_ratio") or 4.0) * width)
        merge = _first(vision, _MERGE) or 1.0
        return cls(depth * (4.0 * width * width + 2.0 * width * inner), merge * merge, flops)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> float:
    return next((float(config[name]) for name in names if isinstance(config.get(name), (int, float))), 0.0)


def media_tokens(multimodal_inputs: Any) -> int:
    """Prompt tokens that images, videos and audio of a request stand for; 0 without any."""
    items = getattr(multimodal_inputs, "mm_items", None) or ()
    return sum(end - start + 1 for item in items for start, end in (item.offsets or ()))

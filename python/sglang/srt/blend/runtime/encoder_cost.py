"""A vision or audio encoder takes compute seconds, which the planner counts beside the decoder's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sglang.srt.blend.runtime.request import MultimodalInputs

_DEPTH = ("depth", "num_hidden_layers", "num_layers", "encoder_layers", "layers")
_WIDTH = ("embed_dim", "hidden_size", "width", "d_model")
_MERGE = ("spatial_merge_size", "merge_size")


@dataclass(frozen=True, slots=True)
class EncoderCost:
    """A transformer encoder that turns patches into tokens of the language model.

    Attributes:
        params: parameters that every patch is multiplied with, a count.
        patches_per_token: patches that one token of the prompt stands for.
        flops: FLOP/s of the hardware.
    """

    params: float
    patches_per_token: float
    flops: float

    def seconds(self, tokens: int) -> float:
        """Compute seconds of encoding media that take `tokens` tokens of the prompt.

        >>> EncoderCost(params=1e9, patches_per_token=4, flops=1e12).seconds(50)
        0.4
        """
        return 2.0 * self.params * self.patches_per_token * tokens / self.flops

    @classmethod
    def from_config(cls, config: Mapping[str, object], flops: float) -> EncoderCost | None:
        """The encoder that a model's Hugging Face config describes; None where its sizes are not given.

        Attention and MLP of a layer are 4 and 8 times width squared unless ``intermediate_size`` or
        ``mlp_ratio`` says otherwise. Attention among the patches of one image is left out: it is small
        beside the GEMMs at the usual image sizes.

        Args:
            flops: FLOP/s of the hardware.
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


def _first(config: Mapping[str, object], names: tuple[str, ...]) -> float:
    """The first of these entries that is a number; 0.0 without one."""
    found = (config.get(name) for name in names)
    return next((float(value) for value in found if isinstance(value, (int, float))), 0.0)


def media_tokens(media: MultimodalInputs | None) -> int:
    """Prompt tokens that a request's images, videos and audio stand for; 0 without any."""
    if media is None:
        return 0
    return sum(last - first + 1 for item in media.mm_items for first, last in (item.offsets or ()))

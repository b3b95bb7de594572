"""What the cost model reads of upstream's view of a model."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig

from models import LLAMA_3_8B
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.runtime.model_config import config_dict

TEXT: dict[str, Any] = {name: value for name, value in LLAMA_3_8B.items() if name != "model_type"}


def upstream(config: PretrainedConfig, text: PretrainedConfig, dtype: torch.dtype) -> Any:
    return SimpleNamespace(hf_config=config, hf_text_config=text, dtype=dtype)


@pytest.mark.parametrize("nested", [False, True])
def test_sizes_are_the_language_models_at_the_dtype_it_runs_at(nested):
    text = PretrainedConfig(**{**TEXT, "torch_dtype": "bfloat16"})
    config = PretrainedConfig(hidden_size=1, vision_config={"depth": 2}) if nested else text
    shape = ModelShape.from_config(config_dict(upstream(config, text, torch.float32)))
    assert shape == ModelShape.from_config({**TEXT, "torch_dtype": "float32"})


def test_the_encoder_stays_where_it_is_looked_for():
    config = config_dict(
        upstream(PretrainedConfig(vision_config={"depth": 2}), PretrainedConfig(**TEXT), torch.bfloat16)
    )
    assert config["vision_config"] == {"depth": 2}

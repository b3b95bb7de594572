"""Cost models of the embedded model on two kinds of CPU, for tests of the CPU benchmark."""

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import Hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
    "dtype": "bfloat16",
}
_SHAPE = ModelShape.from_config(SMOLLM2)

AMX = CostModel(_SHAPE, Hardware("amx", flops=1.4e12, bandwidth=14e9, memory=16e9))
NO_AMX = CostModel(_SHAPE, Hardware("no-amx", flops=240e9, bandwidth=21e9, memory=16e9))

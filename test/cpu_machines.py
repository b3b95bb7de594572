"""Cost models of the embedded model on two kinds of CPU, for tests of the CPU benchmark."""

from models import SMOLLM2
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import Hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape

_SHAPE = ModelShape.from_config(SMOLLM2)

AMX = CostModel(_SHAPE, Hardware("amx", flops=1.4e12, bandwidth=14e9, memory=16e9))
NO_AMX = CostModel(_SHAPE, Hardware("no-amx", flops=240e9, bandwidth=21e9, memory=16e9))

"""Weights and KV cache share the static part of a GPU's memory."""

import pytest

from models import LLAMA_3_8B
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.kv_capacity import kv_cache_bytes, kv_capacity
from sglang.srt.blend.core.cost.model_shape import ModelShape


@pytest.mark.parametrize("hardware", ["a100-40gb", "a100-80gb", "h100"])
@pytest.mark.parametrize("tensor_parallel", [1, 4])
def test_one_token_more_would_not_fit_beside_the_weights(hardware, tensor_parallel):
    gpu = load_hardware(hardware)
    shape = ModelShape.from_config(LLAMA_3_8B, tensor_parallel=tensor_parallel)
    tokens = kv_capacity(shape, gpu, 0.9)
    used = [shape.weight_bytes + count * shape.kv_bytes_per_token for count in (tokens, tokens + 1)]
    assert used[0] <= 0.9 * gpu.memory < used[1]


def test_weights_that_do_not_fit_leave_less_than_nothing():
    shape = ModelShape.from_config({**LLAMA_3_8B, "num_hidden_layers": 320})
    assert kv_cache_bytes(shape, load_hardware("a100-40gb"), 0.9) < 0
    assert kv_capacity(shape, load_hardware("a100-40gb"), 0.9) < 0

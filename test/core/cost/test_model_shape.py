"""Model shapes against published parameter counts."""

import pytest

from models import (
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    GEMMA_2_9B,
    GEMMA_3_4B,
    LLAMA_2_7B,
    LLAMA_3_8B,
    LLAMA_3_70B,
    MISTRAL_7B,
    MIXTRAL,
    MQA,
    QWEN3_30B_A3B,
    QWEN_7B,
    QWEN_72B,
)
from sglang.srt.blend.core.cost.model_shape import ModelShape


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        (LLAMA_3_8B, 8.03),
        (LLAMA_2_7B, 6.74),
        (LLAMA_3_70B, 70.55),
        (QWEN_7B, 7.62),
        (QWEN_72B, 72.7),
        (MISTRAL_7B, 7.24),
        (MIXTRAL, 12.9),  # active
        (QWEN3_30B_A3B, 3.35),  # active
        (DEEPSEEK_V2, 21.4),  # active
        (DEEPSEEK_V3, 37.6),  # active, 36.7 without the input embedding
    ],
)
def test_active_parameters_are_the_published_ones(model, billions):
    embedding = model["hidden_size"] * model["vocab_size"]
    params = ModelShape.from_config(model).gemm_params + embedding
    assert params / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("model", "billions"),
    [(MIXTRAL, 46.7), (QWEN3_30B_A3B, 30.5), (DEEPSEEK_V2, 236.0), (DEEPSEEK_V3, 671.0), (LLAMA_3_8B, 8.03)],
)
def test_weights_of_all_experts_are_the_published_ones(model, billions):
    shape = ModelShape.from_config({**model, "quantization_config": None})
    embedding = model["hidden_size"] * model["vocab_size"]
    assert (shape.weight_bytes / 2 + embedding) / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("model", "kilobytes"),
    [
        (LLAMA_3_8B, 128),
        (LLAMA_2_7B, 512),
        (LLAMA_3_70B, 320),
        (QWEN_7B, 56),
        (MQA, 28),
        (DEEPSEEK_V3, 576 * 2 * 61 / 1024),  # the latent and its rotary part, nothing per head
    ],
)
def test_kv_bytes_per_token(model, kilobytes):
    assert ModelShape.from_config(model).kv_bytes_per_token / 1024 == pytest.approx(kilobytes)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (MISTRAL_7B, (32, 4096)),
        (QWEN_7B, (0, 0)),
        (GEMMA_2_9B, (21, 4096)),
        (GEMMA_3_4B, (29, 1024)),
        (LLAMA_3_8B, (0, 0)),
        ({**QWEN_7B, "use_sliding_window": True, "max_window_layers": 20}, (8, 131072)),
        ({**QWEN_7B, "use_sliding_window": True, "max_window_layers": 40}, (0, 0)),
        (
            {**LLAMA_3_8B, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * 16},
            (16, 64),
        ),
    ],
)
def test_sliding_window_layers(model, expected):
    shape = ModelShape.from_config(model)
    assert (shape.window_layers, shape.window) == expected


def test_tensor_parallel_ranks_share_the_weights_and_heads():
    one, eight = (ModelShape.from_config(LLAMA_3_70B, tensor_parallel=n) for n in (1, 8))
    assert eight.gemm_params == one.gemm_params / 8
    assert eight.weight_bytes == one.weight_bytes / 8
    assert eight.kv_bytes == one.kv_bytes / 8
    assert eight.attention_width == one.attention_width / 8


def test_heads_and_latents_that_cannot_be_divided_are_replicated():
    assert ModelShape.from_config(MQA, tensor_parallel=8).kv_bytes == ModelShape.from_config(MQA).kv_bytes
    two, one = (ModelShape.from_config(DEEPSEEK_V3, tensor_parallel=n) for n in (2, 1))
    assert two.kv_bytes == one.kv_bytes


@pytest.mark.parametrize(
    ("dtype", "ratio"), [("auto", 1), ("bf16", 1), ("fp8_e4m3", 0.5), ("fp8_e5m2", 0.5), ("float32", 2)]
)
def test_kv_dtype_scales_the_cache_only(dtype, ratio):
    base, shape = ModelShape.from_config(LLAMA_3_8B), ModelShape.from_config(LLAMA_3_8B, kv_dtype=dtype)
    assert shape.kv_bytes == base.kv_bytes * ratio
    assert shape.weight_bytes == base.weight_bytes


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "gptq", "bits": 8}, 8),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "mxfp4"}, 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 4}}}}, 4),
        (None, 16),
    ],
)
def test_quantised_weights_lower_the_weight_floor_but_not_the_head(quantization, bits):
    shape = ModelShape.from_config({**LLAMA_3_8B, "quantization_config": quantization})
    expected = (shape.gemm_params - shape.head_params) * bits / 8 + shape.head_params * 2
    assert shape.weight_bytes == pytest.approx(expected)


def test_experts_in_listed_layers_only():
    every = {**DEEPSEEK_V3, "first_k_dense_replace": 0, "moe_layer_freq": [0, 0, 0] + [1] * 58}
    assert ModelShape.from_config(every).gemm_params == ModelShape.from_config(DEEPSEEK_V3).gemm_params


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"vocab_size": None}, {}, "vocab_size is missing; is this the config.json of a decoder"),
        ({"num_hidden_layers": None}, {}, "num_hidden_layers is missing"),
        ({}, {"kv_dtype": "int3"}, "dtype 'int3': unknown; choose one of float32"),
        ({}, {"tensor_parallel": 0}, "tensor_parallel must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(change, options, message):
    with pytest.raises(ValueError, match=message):
        ModelShape.from_config({**LLAMA_3_8B, **change}, **options)

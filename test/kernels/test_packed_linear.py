"""Packed linear layers: the numbers of the plain ones, through updates of the weights, only where allowed."""

from types import SimpleNamespace

import pytest
import torch

from sglang.srt.hardware_backend.portable_cpu import packed_linear
from sglang.srt.hardware_backend.portable_cpu.hooks import _pack_updated_weights
from sglang.srt.hardware_backend.portable_cpu.packed_linear import (
    PackedHeadMethod,
    PackedLinearMethod,
    can_pack,
    pack_weights,
)
from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod, UnquantizedLinearMethod


class Layer(torch.nn.Module):
    def __init__(self, out: int, inner: int, dtype: torch.dtype, method: object) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(out, inner).to(dtype), requires_grad=False)
        self.quant_method = method


class Model(torch.nn.Module):
    """A linear layer, a head, and an embedding that no product is taken with."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = Layer(96, 64, dtype, UnquantizedLinearMethod())
        self.embedding = Layer(50, 64, dtype, UnquantizedEmbeddingMethod())
        self.lm_head = Layer(200, 64, dtype, UnquantizedEmbeddingMethod())
        self.logits_processor = SimpleNamespace(use_fp32_lm_head=False, rl_on_policy_target=None)


def product(layer: Layer, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    result: torch.Tensor = layer.quant_method.apply(layer, x, bias)
    return result


def assert_close(layer: Layer, x: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    exact = x.double() @ layer.weight.double().T + (0.0 if bias is None else bias.double())
    scale = 3e-6 if x.dtype == torch.float32 else 2e-2
    out = product(layer, x, bias)
    assert (out.dtype, out.shape) == (x.dtype, exact.shape)
    torch.testing.assert_close(out.double(), exact, rtol=scale, atol=20 * scale)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if not can_pack(request.param):
        pytest.skip(f"oneDNN does not take {request.param} on this CPU")
    return request.param


@torch.inference_mode()
def test_products_equal_those_of_the_weight(dtype):
    model = Model(dtype)
    assert pack_weights(model) == 2
    assert isinstance(model.linear.quant_method, PackedLinearMethod)
    assert isinstance(model.lm_head.quant_method, PackedHeadMethod)
    assert type(model.embedding.quant_method) is UnquantizedEmbeddingMethod
    for rows in (1, 3, 24, 130):
        x = torch.randn(rows, 64).to(dtype)
        assert_close(model.linear, x)
        assert_close(model.linear, x, torch.randn(96).to(dtype))
        assert_close(model.lm_head, x)
    assert_close(model.linear, torch.randn(2, 5, 64).to(dtype))
    assert product(model.linear, torch.randn(0, 64).to(dtype)).shape == (0, 96)


@torch.inference_mode()
def test_updated_weights_are_packed_anew(dtype):
    model = Model(dtype)
    pack_weights(model)
    x = torch.randn(4, 64).to(dtype)
    for layer in (model.linear, model.lm_head):
        layer.weight.data.copy_(torch.randn_like(layer.weight))
    with pytest.raises(AssertionError):
        assert_close(model.linear, x)
    _pack_updated_weights(None, SimpleNamespace(get_model_runner=lambda: SimpleNamespace(model=model)))
    for layer in (model.linear, model.lm_head):
        assert_close(layer, x)
        layer.weight.data.copy_(torch.randn_like(layer.weight))
        layer.quant_method.process_weights_after_loading(layer)  # what upstream's loaders call
        assert_close(layer, x)


@pytest.mark.parametrize("changed", [{"use_fp32_lm_head": True}, {"rl_on_policy_target": "fsdp"}])
def test_a_head_of_another_precision_is_left_to_upstream(changed):
    model = Model(torch.float32)
    vars(model.logits_processor).update(changed)
    assert pack_weights(model) == 1
    assert type(model.lm_head.quant_method) is UnquantizedEmbeddingMethod


@torch.inference_mode()
def test_the_head_leaves_its_bias_to_the_model_as_upstream_does(dtype):
    model = Model(dtype)
    pack_weights(model)
    x = torch.randn(3, 64).to(dtype)
    biased = product(model.lm_head, x, torch.ones(200, dtype=dtype))
    assert torch.equal(biased, product(model.lm_head, x))


@pytest.mark.parametrize("why", ["off", "memory", "dtype"])
def test_weights_are_left_alone_where_packing_is_not_possible(monkeypatch, why):
    if why == "off":
        monkeypatch.setenv("SGLANG_CPU_KERNELS", "off")
    if why == "memory":
        monkeypatch.setattr(packed_linear, "_MEMORY_SHARE", 0.0)
    model = Model(torch.float16 if why == "dtype" else torch.float32)
    assert pack_weights(model) == 0
    assert type(model.linear.quant_method) is UnquantizedLinearMethod
    assert type(model.lm_head.quant_method) is UnquantizedEmbeddingMethod

"""The product with packed weights against float64, for every height of a tile and several tiles.

Inputs that are multiples of 32 go through AMX where there is one, all others through vectors.
"""

import pytest
import torch

from sglang.srt.hardware_backend.portable_cpu import kernel_build
from sglang.srt.hardware_backend.portable_cpu.kernels import CompiledKernels

ROWS = [*range(1, 18), 24, 25, 36, 61, 130]


@pytest.fixture
def product(compiled: CompiledKernels) -> CompiledKernels:
    if compiled.namespace != kernel_build.INSTRUCTION_SETS["avx512_bf16"].namespace:
        pytest.skip("this CPU has no AVX512-BF16, without which nobody multiplies so")
    return compiled


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", [(32, 2), (96, 64), (160, 250), (64, 576)], ids=str)
@pytest.mark.parametrize("rows", ROWS)
@torch.inference_mode()
def test_products_equal_float64(product, rows, shape, with_bias):
    x, weight = numbers(rows, shape[1] + 6)[:, : shape[1]], numbers(*shape)  # rows that are not adjacent
    bias = numbers(shape[0]) if with_bias else None
    out = product.product(x, product.pack_weight(weight), bias)
    exact = x.double() @ weight.double().T + (0.0 if bias is None else bias.double())
    magnitude = x.double().abs() @ weight.double().abs().T + 1.0
    # One rounding to bfloat16, and the sum's own errors in float32.
    assert ((out.double() - exact).abs() <= exact.abs() * 2**-8 + magnitude * 2**-20).all()


@torch.inference_mode()
def test_a_row_does_not_depend_on_the_others(product):
    x, packed = numbers(61, 64), product.pack_weight(numbers(96, 64))
    together = product.product(x, packed)
    for rows in ROWS[:-1]:
        assert torch.equal(product.product(x[:rows], packed), together[:rows])
        assert torch.equal(product.product(x[-rows:], packed), together[-rows:])


@torch.inference_mode()
def test_no_rows_give_no_rows(product):
    assert product.product(numbers(0, 64), product.pack_weight(numbers(96, 64))).shape == (0, 96)


@torch.inference_mode()
def test_what_does_not_fit_is_refused(product):
    packed = product.pack_weight(numbers(96, 64))
    with pytest.raises(RuntimeError, match="multiples of"):
        product.pack_weight(numbers(90, 64))
    with pytest.raises(RuntimeError, match="bfloat16 matrix"):
        product.pack_weight(torch.zeros(96, 64))
    with pytest.raises(RuntimeError, match=r"\(rows, 64\)"):
        product.product(numbers(3, 62), packed)
    with pytest.raises(RuntimeError, match="96 elements"):
        product.product(numbers(3, 64), packed, numbers(95))
    with pytest.raises(RuntimeError, match="not packed by pack_weight"):
        product.product(numbers(3, 64), numbers(96, 64))


def test_only_weights_that_fit_are_taken(product):
    has_amx = torch.cpu.get_capabilities().get("amx_bf16", False)
    assert product.can_multiply(numbers(96, 64))
    assert product.can_multiply(numbers(96, 62)) == (not has_amx)
    assert not product.can_multiply(numbers(90, 64))
    assert not product.can_multiply(numbers(96, 63))
    assert not product.can_multiply(torch.zeros(96, 64))

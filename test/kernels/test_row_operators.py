"""KV store, RMSNorm, SiLU-and-mul and rotary embedding against float64."""

import pytest
import torch

from sglang.srt.hardware_backend.portable_cpu.kernels import Kernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Rows of 7 and sizes that are no multiple of any vector width, and enough rows to use several threads.
SHAPES = [(1, 64), (7, 100), (300, 576)]


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """Half a unit in the last place of the result, and a little for the arithmetic."""
    return {"rtol": 2 * torch.finfo(dtype).eps, "atol": 2 * torch.finfo(dtype).eps}


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_equals_float64(
    kernels: Kernels,
    random: torch.Generator,
    dtype: torch.dtype,
    shape: tuple[int, int],
    with_residual: bool,
    weight_dtype: torch.dtype,
) -> None:
    wide = torch.randn(shape[0], shape[1] + 9, generator=random).to(dtype)
    x = wide[:, : shape[1]]
    weight = torch.rand(shape[1], generator=random).to(weight_dtype)
    residual = torch.randn(shape, generator=random).to(dtype) if with_residual else None
    total = x.double() if residual is None else x.double() + residual.double()
    expected = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    before = x.clone()
    out = kernels.rms_norm(x, weight, 1e-5, residual)
    torch.testing.assert_close(out.double(), expected, **tolerance(dtype))
    assert torch.equal(x, before)
    if residual is not None:
        torch.testing.assert_close(residual.double(), total, **tolerance(dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_and_mul_equals_float64(
    kernels: Kernels, random: torch.Generator, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    x = (6 * torch.randn(shape[0], 2 * shape[1], generator=random)).to(dtype)
    gate, up = x.double().chunk(2, dim=-1)
    expected = gate / (1 + (-gate).exp()) * up
    torch.testing.assert_close(kernels.silu_and_mul(x).double(), expected, **tolerance(dtype))


def test_silu_and_mul_is_exact_at_the_extremes(kernels: Kernels) -> None:
    x = torch.tensor([[-200.0, -90.0, 0.0, 90.0, 200.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(kernels.silu_and_mul(x), torch.tensor([[0.0, 0.0, 0.0, 90.0, 200.0]]))


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (80, 32), (20, 20)])
@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_embedding_equals_float64(
    kernels: Kernels,
    random: torch.Generator,
    dtype: torch.dtype,
    neox: bool,
    head_dim: int,
    rotary_dim: int,
    cache_dtype: torch.dtype,
) -> None:
    tokens, heads, kv_heads = 150, 6, 2
    angles = torch.arange(500)[:, None] * 10000.0 ** (-torch.arange(0, rotary_dim, 2) / rotary_dim)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1).to(cache_dtype)
    positions = torch.randint(0, 500, (tokens,), generator=random)
    # As in a model: views of one fused projection, rotated where they lie.
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, generator=random).to(dtype)
    before = qkv.clone()
    q, k, v = qkv.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=-1)
    half = rotary_dim // 2
    cosine, sine = cos_sin[positions].double()[:, None].split(half, dim=-1)

    def rotate(x: torch.Tensor) -> torch.Tensor:
        x = x.double().unflatten(1, (-1, head_dim)).clone()
        first = slice(0, half) if neox else slice(0, rotary_dim, 2)
        second = slice(half, rotary_dim) if neox else slice(1, rotary_dim, 2)
        a, b = x[..., first].clone(), x[..., second].clone()
        x[..., first], x[..., second] = a * cosine - b * sine, b * cosine + a * sine
        return x.flatten(1)

    expected_q, expected_k = rotate(q), rotate(k)
    kernels.rotary_embedding(positions, q, k, cos_sin, head_dim=head_dim, neox=neox)
    # Cancellation in a * cos - b * sin: the error scales with the operands, not with the result.
    bound = {"rtol": 0.0, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(q.double(), expected_q, **bound)
    torch.testing.assert_close(k.double(), expected_k, **bound)
    assert torch.equal(v, before[:, -kv_heads * head_dim :])


def test_a_position_outside_the_table_is_refused(compiled: Kernels) -> None:
    q, k = torch.zeros(1, 64), torch.zeros(1, 64)
    with pytest.raises(RuntimeError, match="position 10 is outside"):
        compiled.rotary_embedding(torch.tensor([10]), q, k, torch.zeros(10, 64), head_dim=64, neox=True)


@pytest.mark.parametrize("cache_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_store_kv_rounds_to_the_cache_and_touches_nothing_else(
    kernels: Kernels, random: torch.Generator, dtype: torch.dtype, cache_dtype: torch.dtype
) -> None:
    tokens, heads, k_dim, v_dim = 130, 3, 20, 24
    wide = torch.randn(tokens, heads * k_dim + 5, generator=random).to(dtype)
    k = wide[:, 5:].unflatten(1, (heads, k_dim))
    v = torch.randn(tokens, heads, v_dim, generator=random).to(dtype)
    k_cache = torch.zeros(400, heads, k_dim, dtype=cache_dtype)
    v_cache = torch.zeros(400, heads, v_dim, dtype=cache_dtype)
    slots = torch.randperm(400, generator=random)[:tokens]
    kernels.store_kv(k, v, k_cache, v_cache, slots)
    expected_k, expected_v = torch.zeros_like(k_cache), torch.zeros_like(v_cache)
    expected_k[slots], expected_v[slots] = k.to(cache_dtype), v.to(cache_dtype)
    assert torch.equal(k_cache, expected_k)
    assert torch.equal(v_cache, expected_v)


def test_a_slot_outside_the_pool_is_refused(compiled: Kernels) -> None:
    k = torch.zeros(1, 1, 16)
    with pytest.raises(RuntimeError, match="slot 8 is outside the pool of 8"):
        compiled.store_kv(k, k, torch.zeros(8, 1, 16), torch.zeros(8, 1, 16), torch.tensor([8]))

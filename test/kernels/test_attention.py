"""Paged attention against float64, for every shape a step can have."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_cases import AttentionCase, make_case, reference_attention
from sglang.srt.hardware_backend.portable_cpu.kernels import Kernels
from sglang.srt.hardware_backend.portable_cpu.torch_kernels import TorchKernels

# Largest difference from float64 on the same (already rounded) inputs; outputs are averages of values of
# magnitude up to 4. float32: summation order and an exponential good to about 1e-6. 16-bit types: rounding
# of the result, half a unit in the last place.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}

MIXED_LENGTHS = [1, 600, 64, 65, 1100, 200, 33]
MIXED_EXTENDS = [1, 1, 64, 10, 1, 90, 2]


def run(kernels: Kernels, case: AttentionCase) -> torch.Tensor:
    out = case.out
    plan = kernels.plan_attention(case.rows, case.lengths, case.extends, queries_per_kv_head=case.group)
    kernels.attention(
        case.q,
        case.k_cache,
        case.v_cache,
        out,
        case.table,
        plan,
        scale=case.scale,
        logit_cap=case.logit_cap,
        window=case.window,
    )
    return out


def check(kernels: Kernels, case: AttentionCase) -> None:
    difference = (run(kernels, case).double() - reference_attention(case)).abs().max().item()
    assert difference < TOLERANCE[case.q.dtype]  # also fails on not-a-number


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
    ],
)
def test_a_mixed_step_equals_float64(
    kernels: Kernels, dtype: torch.dtype, cache_dtype: torch.dtype, page_size: int
) -> None:
    check(
        kernels,
        make_case(MIXED_LENGTHS, MIXED_EXTENDS, dtype=dtype, cache_dtype=cache_dtype, page_size=page_size),
    )


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "value_dim"),
    [(4, 4, 64, 64), (8, 1, 128, 128), (14, 2, 64, 64), (24, 2, 80, 80), (5, 1, 72, 40), (16, 1, 192, 128)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_head_layout_equals_float64(
    kernels: Kernels, heads: int, kv_heads: int, head_dim: int, value_dim: int, dtype: torch.dtype
) -> None:
    check(
        kernels,
        make_case(
            MIXED_LENGTHS,
            MIXED_EXTENDS,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=value_dim,
            dtype=dtype,
        ),
    )


@pytest.mark.parametrize("window", [0, 1, 37, 600])
@pytest.mark.parametrize("logit_cap", [0.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sliding_window_and_soft_cap_equal_float64(
    kernels: Kernels, window: int, logit_cap: float, dtype: torch.dtype
) -> None:
    check(
        kernels,
        make_case(
            MIXED_LENGTHS, MIXED_EXTENDS, window=window, logit_cap=logit_cap, page_size=16, dtype=dtype
        ),
    )


def test_one_long_request_is_split_and_equals_float64(kernels: Kernels) -> None:
    check(kernels, make_case([5000], [1], cache_dtype=torch.bfloat16))
    check(kernels, make_case([4100], [3]))
    check(kernels, make_case([4100], [3], dtype=torch.bfloat16))


sequences = st.lists(
    st.tuples(st.integers(0, 300), st.one_of(st.just(1), st.integers(1, 150))), min_size=1, max_size=6
)


@settings(max_examples=25, deadline=None)
@given(
    sequences=sequences,
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 10),
    head_dim=st.sampled_from([16, 24, 64]),
    page_size=st.sampled_from([1, 16]),
    window=st.sampled_from([-1, -1, 50]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    cache_dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
)
def test_random_ragged_steps_equal_float64(
    compiled: Kernels,
    sequences: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    head_dim: int,
    page_size: int,
    window: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    seed: int,
) -> None:
    case = make_case(
        [prefix + extend for prefix, extend in sequences],
        [extend for _, extend in sequences],
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        window=window,
        dtype=dtype,
        cache_dtype=cache_dtype,
        seed=seed,
    )
    check(compiled, case)
    torch.testing.assert_close(
        run(TorchKernels(), case).float(), run(compiled, case).float(), atol=TOLERANCE[dtype], rtol=0
    )


def test_a_row_does_not_depend_on_what_runs_beside_it(kernels: Kernels) -> None:
    together = make_case([900, 2500, 40], [1, 1, 1])
    results = run(kernels, together)
    if isinstance(kernels, TorchKernels):
        pytest.skip("PyTorch pads decoding rows to the longest of their group")
    for sequence in range(3):
        alone = AttentionCase(
            **{
                **vars(together),
                "q": together.q[sequence : sequence + 1],
                "rows": together.rows[sequence : sequence + 1],
                "lengths": together.lengths[sequence : sequence + 1],
                "extends": together.extends[sequence : sequence + 1],
            }
        )
        assert torch.equal(run(kernels, alone)[0], results[sequence])


def test_the_result_is_the_same_for_any_number_of_threads(compiled: Kernels) -> None:
    case = make_case(MIXED_LENGTHS, MIXED_EXTENDS)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = run(compiled, case)
        torch.set_num_threads(4)
        assert torch.equal(run(compiled, case), single)
    finally:
        torch.set_num_threads(threads)


def test_strided_queries_and_caches_are_read_in_place(kernels: Kernels) -> None:
    case = make_case(MIXED_LENGTHS, MIXED_EXTENDS, heads=4, kv_heads=2, head_dim=32)
    expected = run(kernels, case)
    wide = torch.randn(case.q.shape[0], 4 * 32 + 100)
    wide[:, 50 : 50 + 4 * 32] = case.q.flatten(1)
    case.q = wide[:, 50 : 50 + 4 * 32].unflatten(1, (4, 32))
    both = torch.stack([case.k_cache, case.v_cache], dim=1)
    case.k_cache, case.v_cache = both[:, 0], both[:, 1]
    assert not case.q.is_contiguous()
    assert not case.k_cache.is_contiguous()
    assert torch.equal(run(kernels, case), expected)


def test_a_plan_that_does_not_fit_is_refused(compiled: Kernels) -> None:
    case = make_case([100, 200], [1, 1])
    plan = compiled.plan_attention(case.rows, case.lengths, case.extends, queries_per_kv_head=case.group)
    with pytest.raises(RuntimeError, match="plan does not fit"):
        compiled.attention(
            case.q[:1], case.k_cache, case.v_cache, case.out[:1], case.table, plan, scale=case.scale
        )
    with pytest.raises(RuntimeError, match="dtype"):
        compiled.attention(
            case.q.double(), case.k_cache, case.v_cache, case.out.double(), case.table, plan, scale=1.0
        )

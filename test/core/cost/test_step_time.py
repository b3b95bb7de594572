"""The step-time model against measurements, and what must hold of it whatever was measured."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import LLAMA_3_8B
from sglang.srt.blend.core.cost.engines import (
    PoolWork,
    alternating,
    engine_names,
    load_engine,
    mixed,
    overlapped,
    practical_optimum,
)
from sglang.srt.blend.core.cost.gemm_profile import GemmProfile, find_gemm_profile, gemm_profiles
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.step_time import Assumptions, StepTimeModel, StepWork, causal_pairs


def model(hardware="a100-80gb", *, tensor_parallel=1, config=LLAMA_3_8B, **assumed) -> StepTimeModel:
    shape = ModelShape.from_config(config, tensor_parallel=tensor_parallel)
    return StepTimeModel(shape, load_hardware(hardware), assumptions=Assumptions.default(**assumed))


def by_series() -> dict[tuple[str, str, int], GemmProfile]:
    return {(p.device, p.model, p.tensor_parallel): p for p in gemm_profiles()}


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_a_model_that_was_not_profiled_is_predicted_from_another(degree):
    """Llama-2-7B from Llama-3-8B's table (other MLP and KV widths), from 16 rows: mean error under 11%."""
    profiles = by_series()
    known, other = profiles["a100", "llama-3-8b", degree], profiles["a100", "llama-2-7b", degree]
    tokens = other.tokens[other.tokens >= 16]
    error = known.gemm_seconds(tokens, other.params) / other.gemm_seconds(tokens, other.params) - 1
    assert np.abs(error).mean() < 0.11


def test_every_model_of_the_paper_finds_a_table_of_its_own_degree():
    for degree in (1, 2, 4, 8):
        profile = find_gemm_profile("a100-80gb", layer_params=218e6 / degree, tensor_parallel=degree)
        assert profile is not None
        assert (profile.model, profile.tensor_parallel) == ("llama-3-8b", degree)
    assert find_gemm_profile("l4", layer_params=218e6, tensor_parallel=1) is None


def test_units_a_layer_of_llama_3_8b_takes_the_measured_quarter_millisecond_at_one_token():
    m = model()
    one = float(m.gemm(1, 0)) / 32
    assert one == pytest.approx(0.276e-3, rel=0.01)
    floor = m.shape.weight_bytes / m.hardware.bandwidth
    assert float(m.gemm(1)) > floor  # weights cannot be read faster than the memory allows


def test_no_work_takes_no_time():
    for name in engine_names():
        assert float(load_engine(name)(model(), StepWork())) == 0.0


@pytest.mark.parametrize("hardware", ["a100-80gb", "h100", "l4"])
@pytest.mark.parametrize("engine", engine_names())
@given(
    prefill=st.integers(0, 20_000),
    rows=st.integers(0, 4_000),
    context=st.integers(1, 20_000),
    more=st.integers(1, 500),
)
def test_more_work_never_takes_less_time(hardware, engine, prefill, rows, context, more):
    run, m = load_engine(engine), model(hardware)

    def seconds(prefill, rows, kv):
        return float(run(m, StepWork(prefill, rows, kv, causal_pairs(prefill))))

    now = seconds(prefill, rows, rows * context)
    slack = 1e-12
    assert seconds(prefill + more, rows, rows * context) >= now - slack
    assert seconds(prefill, rows + more, rows * context) >= now - slack
    if rows:
        assert seconds(prefill, rows, rows * context + more) >= now - slack


@given(prefill=st.integers(0, 8192), rows=st.integers(0, 2000), context=st.integers(1, 8000))
def test_engines_rank_overlapped_mixed_alternating(prefill, rows, context):
    m = model()
    work = StepWork(prefill, rows, rows * context, causal_pairs(prefill))
    assert float(overlapped(m, work)) <= float(mixed(m, work)) + 1e-12
    if rows and prefill and (prefill + rows) % 128 == 0:  # an equal number of tiles
        assert float(mixed(m, work)) <= float(alternating(m, work)) * 1.02


def test_overlap_is_bounded_by_each_resource_and_by_interference():
    work = StepWork(prefill_tokens=2048, decode_rows=128, kv_tokens=200_000, prefill_pairs=causal_pairs(2048))
    perfect, default = model(interference=0.0), model()
    parts = perfect.parts(work)
    bound = max(float(parts.compute), float(parts.memory)) + float(parts.overhead)
    assert float(overlapped(perfect, work)) == pytest.approx(bound)
    assert float(overlapped(default, work)) > bound
    assert float(overlapped(model(interference=1.0), work)) == pytest.approx(float(mixed(default, work)))


def test_decode_alone_gains_nothing_from_overlap_because_weights_and_kv_share_the_bus():
    work = StepWork(decode_rows=16, kv_tokens=16 * 8000)
    m = model()
    kv_bytes, weights = 16 * 8000 * m.shape.kv_bytes_per_token, m.shape.weight_bytes
    assert float(overlapped(m, work)) > (kv_bytes + weights) / m.hardware.bandwidth


def test_tensor_parallelism_divides_the_work_but_adds_communication():
    one, four = model(), model(tensor_parallel=4)
    assert four.profile is not None
    assert four.profile.tensor_parallel == 4
    ratio = float(four.gemm(2048)) / float(one.gemm(2048))
    assert 0.2 < ratio < 0.45  # as measured: the narrow matrices run a little more efficiently
    assert float(one.all_reduce(2048)) == 0.0
    assert float(four.all_reduce(2048)) > 64 * 12e-6


def test_tensor_parallelism_without_a_known_link_is_refused():
    with pytest.raises(ValueError, match=r"'l4'.*link"):
        model("l4", tensor_parallel=2)


def test_unknown_engine_and_assumption_name_the_choices():
    with pytest.raises(ValueError, match="alternating, mixed, pdmux, overlapped"):
        load_engine("eager")
    with pytest.raises(ValueError, match="interference"):
        Assumptions.default(luck=1.0)


def test_quantised_weights_use_the_datasheet():
    config = LLAMA_3_8B | {"quantization_config": {"quant_method": "fp8"}}
    m = model(config=config)
    assert m.profile is None
    assert float(m.gemm(1)) < float(model().gemm(1))  # half the bytes


def test_the_output_head_counts_only_rows_that_need_logits():
    m = model()
    assert float(m.gemm(4096, 4096)) / float(m.gemm(4096, 4)) == pytest.approx(1.07, abs=0.02)


@given(
    prompt=st.integers(1, 5000),
    output=st.integers(1, 500),
    cached=st.integers(0, 4999),
    count=st.integers(1, 40),
)
def test_no_engine_beats_the_practical_optimum_with_equal_steps(prompt, output, cached, count):
    """Run the pool in any number of equal steps: none is faster than the optimum."""
    cached = min(cached, prompt - 1)
    m = model()
    pool = PoolWork.of(np.full(40, prompt), np.full(40, output), np.full(40, cached))
    for name in engine_names():
        steps = max(count, int(np.ceil((pool.prefill_tokens + pool.decode_rows) / 8192)))
        work = StepWork(
            pool.prefill_tokens / steps,
            pool.decode_rows / steps,
            pool.kv_tokens / steps,
            pool.prefill_pairs / steps,
            pool.requests / steps,
        )
        seconds = steps * float(load_engine(name)(m, work))
        assert practical_optimum(m, name, pool) <= seconds * 1.01  # whole tiles


@pytest.mark.parametrize("engine", engine_names())
def test_a_long_answer_raises_the_optimum_of_a_small_pool_and_not_of_a_large_one(engine):
    m = model()
    for copies, grows in ((1, True), (200, False)):
        prompt = np.repeat([250.0, 120.0], [400 * copies, copies])
        output = np.repeat([27.0, 16_000.0], [400 * copies, copies])
        pool = PoolWork.of(prompt, output, np.zeros_like(prompt))
        free = practical_optimum(m, engine, pool)
        bound = practical_optimum(m, engine, pool, min_steps=16_000)
        assert bound >= free
        assert (bound > 1.5 * free) == grows
    assert bound < 1.1 * free


def test_pool_work_counts_what_a_request_does():
    pool = PoolWork.of([10], [3], [4])
    assert pool.prefill_tokens == 6
    assert pool.decode_rows == 2  # the prefill gives the first token
    assert pool.kv_tokens == 11 + 12
    assert pool.prefill_pairs == 5 + 6 + 7 + 8 + 9 + 10

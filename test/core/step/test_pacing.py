"""Rows per step from the work that is left."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import LLAMA_3_8B
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.core.step.pacing import Demand, Pacer, Quota, WorkLeft

SHAPE = ModelShape.from_config(LLAMA_3_8B)
A100 = StepTimeModel(SHAPE, load_hardware("a100-80gb"))
CPU = StepTimeModel(SHAPE, load_hardware("cpu"))
CAPACITY = 400_000


def pacer(engine="overlapped", times=A100):
    return Pacer(times, engine, kv_capacity=CAPACITY)


NOTHING = Demand()


def left(rows, kv_reads, longest=1.0, compute=NOTHING):
    return WorkLeft(
        rows=rows, kv_reads=kv_reads, kv_held=kv_reads, longest=longest, density=1.0, compute=compute
    )


def test_free_rows_are_hidden_by_the_reads_of_the_step():
    kv_tokens = 300_000
    memory = A100.weight_read + float(A100.decode_attention(kv_tokens))
    rows = pacer().free_rows(kv_tokens)
    compute = float(A100.gemm(rows, 1) + A100.other(rows))
    assert compute == pytest.approx(memory, rel=0.15)  # GEMM times go up a whole tile at once


@given(st.floats(0, CAPACITY), st.floats(0, CAPACITY))
def test_more_reads_hide_more_rows(a, b):
    low, high = sorted((a, b))
    assert pacer().free_rows(low) <= pacer().free_rows(high)


def test_little_compute_is_taken_as_fast_as_it_is_hidden():
    """Memory-bound: what is left would be hidden many times over, so each step takes its free rows."""
    quota = pacer().quota(left(rows=1e4, kv_reads=1e11), decode_rows=10, kv_tokens=300_000)
    free = pacer().free_rows(300_000)
    assert free - 128 <= quota.tokens + 10 <= free


@pytest.mark.parametrize("engine", ["mixed", "overlapped"])
def test_in_a_stream_prefill_is_not_spread_over_the_longest_answer(engine):
    """Others will follow it; over an answer of 10,000 tokens, 40 long prompts would take as many steps."""
    pool = left(rows=60_000, kv_reads=20 * CAPACITY, longest=10_000, compute=Demand(60_000, 600_000))
    stream = replace(pool, stream=True)
    assert pool.prefill_steps(CAPACITY) == 10_000 - 10
    assert stream.steps(CAPACITY) == stream.prefill_steps(CAPACITY) == pytest.approx(20 / 0.7)
    rows = []
    for work in (pool, stream):
        pace = pacer(engine)
        quotas = [pace.quota(work, decode_rows=0, kv_tokens=0.7 * CAPACITY).tokens for _ in range(400)]
        rows.append(float(np.mean(quotas)))
    assert rows[1] == pytest.approx(60_000 / (20 / 0.7), rel=0.1)
    assert rows[0] < 0.3 * rows[1]


@pytest.mark.parametrize("engine", ["mixed", "overlapped"])
def test_a_tile_that_decode_rows_begin_is_filled(engine):
    """However little there is to prefill and to hide it behind: the rest of the tile costs nothing."""
    pace = pacer(engine)
    assert pace.free_rows(1000) < 128
    work = left(rows=1e4, kv_reads=1e9, longest=10_000)
    for _ in range(5):
        assert pace.quota(work, decode_rows=1, kv_tokens=1000).tokens == 127
        assert pace.quota(work, decode_rows=129, kv_tokens=1000).tokens == 127


def test_much_compute_is_spread_over_the_steps_left():
    """Compute-bound, all steps alike: each takes its even part, and none is left over."""
    work = left(rows=1e7, kv_reads=100_000 * 10_000, longest=10_000)
    pace = pacer()
    taken = [pace.quota(work, decode_rows=20, kv_tokens=100_000).tokens + 20 for _ in range(640)]
    assert np.mean(taken) == pytest.approx(1000, rel=0.02)


@pytest.mark.parametrize("engine", ["mixed", "overlapped"])
@pytest.mark.parametrize("rows", [300, 700, 1500, 3000])
def test_no_mixture_of_other_sizes_is_cheaper(engine, rows):
    """What steps of the sizes taken cost on average, against the best two sizes for that many rows."""
    kv_tokens, steps = 50_000, 500

    def seconds(n):
        compute = A100.gemm(n, 1) + A100.other(n)
        memory = A100.weight_read + A100.decode_attention(kv_tokens) * (np.asarray(n) > 0)
        return np.maximum(compute, memory) if engine == "overlapped" else compute

    work = left(rows=rows * 10_000, kv_reads=kv_tokens * 10_000, longest=10_000)
    pace = pacer(engine)
    taken = [pace.quota(work, decode_rows=0, kv_tokens=kv_tokens).tokens for _ in range(steps)]
    mean = np.mean(taken)
    assert mean == pytest.approx(rows, rel=0.05)
    sizes = np.arange(128, 16385, 128)
    low, high = np.meshgrid(sizes[sizes <= mean], sizes[sizes > mean])
    share = (high - mean) / (high - low)
    best = (share * seconds(low) + (1 - share) * seconds(high)).min()
    assert seconds(np.array(taken)).mean() <= best * (1 + 1e-4)


@pytest.mark.parametrize("engine", ["mixed", "overlapped"])
def test_prefill_ends_before_the_last_answers_do(engine):
    """A compute side that takes 2,000 of 10,000 steps has 8,000 in which to begin."""
    work = {"rows": 1.6e7, "kv_reads": 1e5, "longest": 10_000}
    sooner = left(**work, compute=Demand(share=1000.0, token_steps=1000.0 * 2000))

    def mean(work):
        pace = pacer(engine)
        return np.mean([pace.quota(work, decode_rows=0, kv_tokens=10).tokens for _ in range(500)])

    assert mean(left(**work)) == pytest.approx(1600, rel=0.03)
    assert mean(sooner) == pytest.approx(2000, rel=0.03)
    longer_than_all = left(**work, compute=Demand(1000.0, 1000.0 * 20_000))
    assert longer_than_all.prefill_steps(CAPACITY) == 1


def test_the_compute_side_holds_what_an_even_pace_needs():
    compute = Demand(share=1e6, token_steps=1e6 * 2000)
    assert compute.steps == 2000
    assert (
        left(rows=1, kv_reads=1, longest=10_000, compute=compute).compute_reserve(CAPACITY, used=0.0)
        == 1e6 * 2000 / 8000
    )
    hurry = left(rows=1, kv_reads=1, longest=2001, compute=compute)
    assert hurry.compute_reserve(CAPACITY, used=0.0) == pytest.approx(0.95 * CAPACITY)
    assert left(rows=1, kv_reads=1).compute_reserve(CAPACITY, used=0.0) == 0
    few = left(rows=1, kv_reads=1, longest=2001, compute=Demand(300.0, 300.0 * 2000))
    assert few.compute_reserve(CAPACITY, used=50.0) == 350.0, "all there is of it"


def test_the_mixed_engine_spreads_rows_evenly_whatever_a_step_reads():
    work = left(rows=3e6, kv_reads=1e9, longest=10_000)
    for kv_tokens in (0, 400_000):
        pace = pacer("mixed")
        taken = [pace.quota(work, decode_rows=0, kv_tokens=kv_tokens).tokens for _ in range(64)]
        assert np.mean(taken) == pytest.approx(300, rel=0.02)


@settings(max_examples=50)
@given(st.integers(0, 700), st.floats(1, 1e7), st.sampled_from(["mixed", "overlapped"]))
def test_measured_kernels_get_whole_tiles(decode_rows, rows, engine):
    quota = pacer(engine).quota(left(rows, 1e9, 5000), decode_rows=decode_rows, kv_tokens=1e5)
    assert quota.tokens == 0 or (quota.tokens + decode_rows) % 128 == 0


def test_what_a_tile_cuts_off_is_owed():
    pace = pacer("mixed")
    work = left(rows=500_000, kv_reads=0.0, longest=10_000)  # 50 rows a step
    taken = [pace.quota(work, decode_rows=0, kv_tokens=0).tokens for _ in range(256)]
    assert sum(taken) == pytest.approx(256 * 50, abs=max(taken))


def test_without_a_measured_profile_there_are_no_tiles():
    work = left(rows=500_000, kv_reads=0.0, longest=10_000)
    assert pacer("mixed", CPU).quota(work, decode_rows=0, kv_tokens=0) == Quota(50, 1.0, late=9000)


def test_more_decode_rows_than_the_step_should_carry_leave_the_rest_of_their_tile():
    work = left(rows=10_000, kv_reads=0.0, longest=10_000)
    assert pacer("mixed").quota(work, decode_rows=500, kv_tokens=0).tokens == 12
    assert pacer("mixed").quota(work, decode_rows=512, kv_tokens=0).tokens == 0
    assert pacer("mixed", CPU).quota(work, decode_rows=500, kv_tokens=0).tokens == 0


def test_an_alternating_engine_cannot_be_paced():
    with pytest.raises(ValueError, match="alternating"):
        pacer("alternating")


def test_work_density_agrees_with_that_of_a_request():
    cost = CostModel(SHAPE, load_hardware("a100-80gb"))
    prompt, output = 100, 900
    reads = prompt * output + output * (output + 1) / 2
    assert cost.work_density(prompt + output, reads) == pytest.approx(
        float(cost.density(prompt, output)), rel=0.01
    )
    assert cost.work_density(1, 0) == float("inf")


def test_a_prefix_that_many_read_takes_no_steps_for_each_of_them():
    """Thirty questions on one document: their reads are many, but the cache holds the document once."""
    shared = WorkLeft(rows=1e4, kv_reads=3e9, kv_held=1e8, longest=1.0, density=1.0)
    assert shared.full_steps(CAPACITY) == pytest.approx(
        left(rows=1e4, kv_reads=3e9).full_steps(CAPACITY) / 30
    )

"""PD multiplexing: what work takes on a part of a GPU, two streams against one clock, and configs."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import LLAMA_3_8B
from sglang.srt.blend.core.cost.engines import PoolWork, engines_on, load_engine, practical_optimum
from sglang.srt.blend.core.cost.hardware import Hardware, load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.pdmux import (
    Division,
    Load,
    PdmuxConfig,
    PdmuxTimes,
    own_divisions,
    side_by_side,
)
from sglang.srt.blend.core.cost.pdmux_choice import choose_config
from sglang.srt.blend.core.cost.step_time import Assumptions, StepTimeModel, StepWork
from sglang.srt.blend.core.cost.two_streams import Stream, TwoStreams
from sglang.srt.multiplex.pdmux_context import divide_sm

A100 = load_hardware("a100-80gb")
SHAPE = ModelShape.from_config(LLAMA_3_8B)


def times(**assumed: float) -> PdmuxTimes:
    return PdmuxTimes(StepTimeModel(SHAPE, A100, assumptions=Assumptions.default(**assumed)))


def pool(prompt: int, output: int, requests: int = 1000) -> PoolWork:
    each = np.ones(requests)
    return PoolWork.of(prompt * each, output * each, 0 * each)


@pytest.mark.parametrize("name", ["a100-40gb", "h100", "l4", "l40s"])
@pytest.mark.parametrize("groups", [1, 2, 6, 7, 40])
def test_without_a_list_the_divisions_are_upstreams(name, groups):
    gpu = load_hardware(name)
    capability = divmod(round(10 * gpu.compute_capability), 10)
    ours = [(d.prefill, d.decode) for d in own_divisions(gpu, groups)]
    assert ours == divide_sm(gpu.multiprocessors, capability, groups)


@given(st.integers(1, 200), st.integers(1, 80))
def test_decode_rows_choose_among_them_as_upstream_does(rows, divisor):
    """Upstream: the last but one of the groups at most, the first at least, rows by divisor between."""
    divisions = own_divisions(A100, 6, divisor)
    upstream = max(1, min(6, rows * 6 // divisor))
    assert PdmuxConfig(divisions).division(rows) == divisions[upstream - 1]


def test_the_whole_gpu_takes_what_an_undivided_one_takes():
    work = StepWork(decode_rows=100, kv_tokens=200_000, prefill_tokens=2048, prefill_pairs=1e6)
    undivided = float(load_engine("mixed")(times().times, work)) - times().times.assumptions.step_overhead
    assert float(times().load(work, A100.multiprocessors).seconds) == pytest.approx(undivided)


@given(st.integers(1, 107), st.integers(0, 8192), st.integers(0, 300), st.integers(0, 10**6))
def test_a_smaller_part_is_never_faster_and_never_slower_than_its_size(sms, prefill, rows, kv_tokens):
    work = StepWork(prefill_tokens=prefill, decode_rows=rows, kv_tokens=kv_tokens if rows else 0)
    part, whole = (float(times().load(work, n).seconds) for n in (sms, 108))
    assert whole * (1 - 1e-9) <= part <= whole * 108 / sms * (1 + 1e-9)


def test_decode_keeps_most_of_its_speed_on_half_of_the_gpu_and_prefill_does_not():
    decode = StepWork(decode_rows=32, kv_tokens=300_000)
    prefill = StepWork(prefill_tokens=8192, prefill_pairs=8192 * 4096)
    kept = [
        float(times().load(work, 108).seconds / times().load(work, 54).seconds) for work in (decode, prefill)
    ]
    assert kept[0] > 0.85
    assert 0.5 <= kept[1] < 0.56


def test_two_streams_by_hand():
    """Prefill of 10 s (a fifth of the bus) beside decode of 4 s (nine tenths): 1.1 of the bus, 0.1 beyond.

    Both at 1 / 1.2 of their speed: decode ends at 4.8 s and prefill has 6 s left. Two idle seconds later a
    second decode of 3 s begins, at 6.8 s, beside the last 4 s: it ends at 10.4 s, prefill at 11.4 s.
    """
    streams = TwoStreams(times(interference=0.1))
    decode = Load(np.float64(3.0), np.float64(0.9))
    streams.launch(Stream.PREFILL, Load(np.float64(10.0), np.float64(0.2)))
    streams.launch(Stream.DECODE, Load(np.float64(4.0), np.float64(0.9)))
    streams.wait(Stream.DECODE)
    assert streams.now == pytest.approx(4.8)
    assert streams.done(Stream.PREFILL) == pytest.approx(0.4)
    streams.pass_time(2.0)
    streams.launch(Stream.DECODE, decode)
    streams.wait(Stream.DECODE)
    assert streams.now == pytest.approx(10.4)
    assert streams.busy(Stream.PREFILL)
    streams.wait(Stream.PREFILL)
    assert streams.now == pytest.approx(11.4)
    assert streams.done(Stream.PREFILL) == pytest.approx(0.6)


@settings(max_examples=25)
@given(st.integers(1, 8192), st.integers(1, 300), st.integers(1, 10**6))
def test_the_best_division_is_no_worse_than_one_after_the_other_and_no_better_than_both_at_once(n, rows, kv):
    prefill, decode = StepWork(prefill_tokens=n), StepWork(decode_rows=rows, kv_tokens=kv)
    alone = [float(times().load(work, 108).seconds) for work in (prefill, decode)]
    assert max(alone) <= float(side_by_side(times(), prefill, decode)) <= sum(alone) * (1 + 1e-9)


def test_no_schedule_of_pd_multiplexing_gains_a_fifth_over_mixed_passes_on_an_a100():
    """Compute and memory in balance, where it gains most: the figures of `overlapped` do not hold for it."""
    model, balanced = times().times, pool(1000, 500)
    mixed, pdmux, overlapped = (
        practical_optimum(model, e, balanced) for e in ("mixed", "pdmux", "overlapped")
    )
    assert overlapped < pdmux < mixed < 1.2 * pdmux


def test_a_config_is_read_as_it_is_written():
    config = PdmuxConfig((Division(68, 40, 0), Division(54, 54, 64)), 4096)
    assert PdmuxConfig.of(A100, config.raw()) == config
    assert PdmuxConfig.of(A100) == PdmuxConfig(own_divisions(A100, 6))
    assert [config.division(rows).decode for rows in (1, 63, 64)] == [40, 40, 54]
    assert [config.layers(tokens, 32) for tokens in (0, 100, 2048, 9000)] == [32, 32, 2, 1]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"manual_divisions": [[68, 40, 0]]}, "sm_group_num must be given"),
        ({"sm_group_num": 4, "manual_divisions": [[68, 40, 0]]}, "wants 2 manual_divisions, got 1"),
        ({"sm_group_num": 3, "manual_divisions": [[68, 40, 8]]}, "threshold"),
        ({"sm_group_num": 3, "manual_divisions": [[69, 39, 0]]}, "multiples of 2"),
        ({"sm_group_num": 3, "manual_divisions": [[80, 40, 0]]}, "does not divide the 108 SMs"),
    ],
)
def test_what_upstream_refuses_or_fails_over_is_refused(raw, says):
    with pytest.raises(ValueError, match=says):
        PdmuxConfig.of(A100, raw)


def test_a_gpu_that_cannot_be_divided_has_no_such_engine():
    assert "pdmux" in engines_on(A100)
    for name in ("b200", "mi300x", "cpu"):
        assert "pdmux" not in engines_on(load_hardware(name))
    with pytest.raises(ValueError, match="multiprocessors and compute_capability"):
        PdmuxTimes(StepTimeModel(SHAPE, Hardware("mine", 1e14, 1e12, 80e9)))


def test_the_chosen_division_gives_decode_more_where_there_is_more_to_decode():
    chosen = [
        choose_config(times(), pool(1000, output), kv_capacity=400_000, longest=output)
        for output in (50, 400, 4000)
    ]
    decode = [choice.config.divisions[0].decode for choice in chosen]
    assert decode == sorted(decode)
    assert decode[0] < decode[-1]
    balanced = chosen[1]
    assert math.isclose(balanced.prefill, balanced.decode, rel_tol=0.35)

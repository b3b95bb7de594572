"""Prefill batches that pass all layers beside decode steps."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import LLAMA_3_8B
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.pdmux import PdmuxConfig, PdmuxTimes
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork
from sglang.srt.blend.core.step.batch_pacing import BatchPacer
from sglang.srt.blend.core.step.pacing import WorkLeft

A100 = load_hardware("a100-80gb")
TIMES = PdmuxTimes(StepTimeModel(ModelShape.from_config(LLAMA_3_8B), A100))
CONFIG = PdmuxConfig.of(A100)
LEFT = WorkLeft(rows=1e6, kv_reads=1e9, kv_held=1e9, longest=5000.0, density=1.0)


def lasts(tokens: int, rows: int, kv_tokens: int) -> tuple[float, float]:
    """Seconds of a prefill batch beside decode steps, and of a turn with such a step beside that batch."""
    division = CONFIG.division(rows)
    prefill = TIMES.load(StepWork(prefill_tokens=tokens, finished_prefills=1), division.prefill)
    decode = TIMES.load(StepWork(decode_rows=rows, kv_tokens=kv_tokens), division.decode)
    slow = float(TIMES.slowdown(prefill, decode))
    return float(prefill.seconds) * slow, float(decode.seconds) * slow + TIMES.turn


def quota(rows: int, kv_tokens: int):
    pacer = BatchPacer(TIMES, CONFIG, kv_capacity=400_000)
    return pacer.quota(LEFT, decode_rows=rows, kv_tokens=kv_tokens)


@settings(max_examples=25)
@given(st.integers(1, 300), st.integers(1_000, 400_000))
def test_a_batch_ends_in_the_last_tile_before_a_decode_step_does(rows, kv_tokens):
    tokens = quota(rows, kv_tokens).tokens
    prefill, turn = lasts(tokens, rows, kv_tokens)
    more = lasts(tokens + 128, rows, kv_tokens)[0]
    steps = math.ceil(prefill / turn * (1 - 1e-3))
    assert more > steps * turn * (1 - 1e-3)  # the turn itself changes a little with the batch's bus share


def seconds_per_token(tokens: int, turn: float) -> float:
    """Of a batch beside 100 requests with 200,000 tokens of KV, half a step of idling included."""
    return (lasts(tokens, 100, 200_000)[0] + turn / 2) / tokens


def test_a_batch_is_no_larger_than_it_must_be_for_speed():
    """What has finished decoding is not replaced before the batch ends."""
    chosen = quota(100, 200_000).tokens
    prefill, turn = lasts(chosen, 100, 200_000)
    sizes = range(128, 16385, 128)
    rate = {tokens: seconds_per_token(tokens, turn) for tokens in sizes}
    worst = {n: max(rate[tokens] for tokens in sizes if n <= tokens <= 1.25 * n) for n in sizes}
    assert worst[chosen] <= 1.01 * min(worst.values())
    smaller = [n for n in sizes if lasts(n, 100, 200_000)[0] < prefill - 2 * turn]
    assert len(smaller) > 30
    assert min(worst[n] for n in smaller) > 1.005 * min(worst.values())


def test_a_last_prompt_that_goes_whole_does_not_make_a_batch_dear():
    """Products of 3,328 rows are cheap for their size, and dear with the prompt that goes beyond them."""
    chosen = quota(100, 200_000).tokens
    turn = lasts(chosen, 100, 200_000)[1]
    best = min(seconds_per_token(tokens, turn) for tokens in range(128, 16385, 128))
    for prompt in (300, 500, 700, 1_300):
        assert seconds_per_token(-(-chosen // prompt) * prompt, turn) < 1.025 * best


def test_answers_that_would_end_last_are_not_held_back():
    assert quota(100, 200_000).late == pytest.approx(0.9 * 5000)
    assert quota(100, 200_000).density == 1.0

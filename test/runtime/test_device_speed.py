"""What a device's own speed says of its profile when a server starts."""

from dataclasses import replace

import pytest
import torch

from models import LLAMA_3_8B
from sglang.srt.blend.core.cost.correction import AS_TOLD, FARTHEST
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.runtime import device_speed
from sglang.srt.blend.runtime.device_speed import correction_at_start

SHAPE = ModelShape.from_config(LLAMA_3_8B)
CPU = load_hardware("cpu")


def corrected(monkeypatch, *, compute=1.0, memory=1.0):
    """On a CPU whose products and reads take so many times as long as its profile says."""
    times = StepTimeModel(SHAPE, CPU)

    def rates(matrices, layers, dtype, *, tokens, **_):
        layer = SHAPE.gemm_params - SHAPE.head_params
        _, rows = tokens
        yield CPU.bandwidth / memory * 2.0 / dtype.itemsize
        yield 2.0 * rows * layer / float(times.gemm(rows, 0)) / compute

    monkeypatch.setattr(device_speed, "gemm_rates", rates)
    monkeypatch.setattr(device_speed, "read_bandwidth", lambda *_, **__: 1e15)
    return correction_at_start(times, "cpu", torch.bfloat16)


@pytest.mark.parametrize(("compute", "memory"), [(3.0, 0.5), (0.4, 2.0), (1.0, 4.0)])
def test_a_device_that_is_slower_or_faster_than_told_is_found_out(monkeypatch, compute, memory):
    found = corrected(monkeypatch, compute=compute, memory=memory)
    assert (found.compute, found.memory) == pytest.approx((compute, memory))
    assert found.overhead == 1.0


def test_a_right_profile_stays_to_the_last_bit(monkeypatch):
    assert corrected(monkeypatch, compute=1.15, memory=0.85) == AS_TOLD


def test_a_device_that_is_out_of_all_reason_gets_the_bound(monkeypatch):
    assert corrected(monkeypatch, compute=1e6).compute == FARTHEST


def test_this_cpu_is_measured_for_real():
    shape = replace(SHAPE, hidden=256)
    found = correction_at_start(StepTimeModel(shape, CPU), "cpu", torch.float32)
    assert found.compute > 0
    assert found.overhead == 1.0

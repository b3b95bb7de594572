"""Use of compute and memory over simulated time."""

import numpy as np
import pytest
from plans import COST

from sglang.batch.plan.timeline import BINS, timeline
from sglang.srt.blend.core.cost.engines import load_engine
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork

SHAPE, HARDWARE = COST.shape, COST.hardware


def test_all_work_is_in_the_timeline_once() -> None:
    seconds = np.array([0.3, 0.1, 0.6])
    work = StepWork(
        prefill_tokens=np.array([8000.0, 0.0, 0.0]),
        decode_rows=np.array([0.0, 200.0, 100.0]),
        kv_tokens=np.array([0.0, 1e5, 2e5]),
        prefill_pairs=np.array([3.2e7, 0.0, 0.0]),
        finished_prefills=np.array([10.0, 0.0, 0.0]),
    )
    use = timeline(seconds, work, SHAPE, HARDWARE)
    assert len(use.compute) == len(use.memory) == BINS
    assert use.stretch * BINS == pytest.approx(1.0)
    read = 3 * SHAPE.weight_bytes + 3e5 * SHAPE.kv_bytes_per_token
    assert sum(use.memory) * use.stretch * HARDWARE.bandwidth == pytest.approx(read, rel=1e-2)
    prefill, decode = use.compute[: BINS // 4], use.compute[-BINS // 4 :]
    assert min(prefill) > max(decode)


@pytest.mark.parametrize("engine", ["mixed", "overlapped"])
def test_nothing_is_used_beyond_its_peak(engine: str) -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 8192, 200).astype(np.float64)
    work = StepWork(
        prefill_tokens=rows,
        decode_rows=rng.integers(1, 400, 200).astype(np.float64),
        kv_tokens=rng.integers(1, 400_000, 200).astype(np.float64),
        prefill_pairs=rows * 500,
        finished_prefills=rows / 500,
    )
    seconds = load_engine(engine)(StepTimeModel(SHAPE, HARDWARE), work)
    use = timeline(seconds, work, SHAPE, HARDWARE)
    assert 0 < max(use.compute) <= 1
    assert 0 < max(use.memory) <= 1

"""Compile the kernels before the first request needs them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from sglang.srt.blend.core import warm_up
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.runtime.output_counts import OutputCounts
from sglang.srt.blend.runtime.token_ids import fold


def compile_kernels(cost_model: CostModel, times: StepTimeModel | None) -> None:
    """Compile those of the planner, and those that read what upstream has."""
    warm_up.compile_kernels(cost_model, times)
    fold([1])
    request = SimpleNamespace(kv=SimpleNamespace(req_pool_idx=0), output_ids=[], finished=lambda: False)
    one = torch.ones(1, dtype=torch.int64)
    batch = SimpleNamespace(reqs=[request], seq_lens_cpu=one, req_pool_indices_cpu=one - 1)
    counts = OutputCounts({0: request}.get)
    counts.begins(0, 0)
    counts.count(batch, np.ones(1, np.int64))
    counts.slots()

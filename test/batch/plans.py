"""Prompts, cost models and reports for tests of `sglang-batch plan`."""

from __future__ import annotations

from typing import Any

import numpy as np

from models import LLAMA_3_8B
from sglang.batch.plan.answers import Answers
from sglang.batch.plan.groups import find_groups
from sglang.batch.plan.prompts import PlannedModel, Prompts
from sglang.batch.plan.report import Excerpt, PlanReport
from sglang.batch.plan.schedules import Schedule, Simulated
from sglang.batch.plan.timeline import Timeline
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.pool.workload import Workload

CONFIG = LLAMA_3_8B | {"eos_token_id": 2, "max_position_embeddings": 2048}
COST = CostModel(ModelShape.from_config(CONFIG), load_hardware("a100-80gb"))


def make_prompts(
    prompts: list[list[int]], *, cap: list[int] | None = None, known: list[int] | None = None
) -> Prompts:
    """One line per prompt; lengths of answers as `Prompts` has them, 0 by default."""
    n = len(prompts)
    return Prompts(
        tokens=np.array([token for prompt in prompts for token in prompt], np.int32),
        offsets=np.concatenate([[0], np.cumsum([len(prompt) for prompt in prompts])]).astype(np.int64),
        cap=np.array(cap or [0] * n, np.int64),
        known=np.array(known or [0] * n, np.int64),
        line=np.arange(1, n + 1),
        position=np.arange(n),
        custom_ids=tuple(f"id{i}" for i in range(n)),
        media=0,
        lines=n,
        bad=(),
        model=PlannedModel("model", dict(CONFIG), 8192, {}),
    )


def families(sizes: dict[int, int], *, prefix: int = 100, suffix: int = 10, seed: int = 0) -> list[list[int]]:
    """Prompts in random order: `sizes` maps the first token of a shared prefix to the number that have it."""
    rng = np.random.default_rng(seed)
    prompts = [
        [first] * prefix + rng.integers(10_000, 20_000, suffix).tolist()
        for first, size in sizes.items()
        for _ in range(size)
    ]
    return [prompts[i] for i in rng.permutation(len(prompts))]


def make_report(workload: Workload, prompts: Prompts, **changes: Any) -> PlanReport:
    """A report of three made-up simulations on one engine."""
    flat = Timeline(1.0, (0.5,) * 120, (0.25,) * 120)
    seconds = {"fcfs": 100.0, "dfs": 90.0, "blend": 80.0}
    runs = [
        Simulated(Schedule(policy, "mixed"), time, 0.5, 10, 0, 1000, 1.0, flat)
        for policy, time in seconds.items()
    ]
    fields: dict[str, Any] = {
        "model": "model",
        "hardware": "a100-80gb",
        "tensor_parallel": 1,
        "lines": len(workload),
        "bad_lines": (),
        "requests": len(workload),
        "media": 0,
        "prompt_tokens": len(workload.tokens),
        "output_tokens": int(workload.output.sum()),
        "answers": Answers(0, len(workload), 0, None, 512),
        "sharing_possible": 0.5,
        "density": 1.0,
        "kv_capacity": 1000,
        "kv_tokens": 5000,
        "weight_bytes": 16e9,
        "mem_fraction_static": 0.88,
        "chunked_prefill_size": 8192,
        "groups": tuple(find_groups(workload, prompts, np.arange(len(workload)), COST)),
        "optimum": {"mixed": 70.0},
        "pdmux": None,
        "longest_answer": 10,
        "excerpt": Excerpt(len(workload), 5000, {"mixed": 1.0}),
        "simulated": tuple(runs),
        "failed": (),
        "advice": None,
    }
    return PlanReport(**(fields | changes))

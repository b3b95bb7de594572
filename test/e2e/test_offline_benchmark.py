"""A measured engine: the worker of `benchmark.offline_throughput` with a real scheduler and a tiny model."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the benchmark package is not installed
from benchmark.offline.configurations import Configuration, Setting, sglang_options, start_sglang
from benchmark.offline.pool_file import write_pool

from sglang.srt.blend.core.pool.workload import Workload

GROUPS, OF_EACH, SHARED, OWN = 3, 6, 64, 16
CAP = 200  # no answer is that long


def shuffled_groups() -> Workload:
    """Prompts of groups with a shared prefix each, answers of 1 to 18 tokens, half of them announced."""
    rng = np.random.default_rng(0)
    prefixes = rng.integers(3, 500, (GROUPS, SHARED))
    order = rng.permutation(GROUPS * OF_EACH)
    prompts = [np.concatenate([prefixes[i % GROUPS], rng.integers(3, 500, OWN)]) for i in order]
    output = (order + 1).astype(np.int32)
    known = order % 2 == 0
    return Workload(
        tokens=np.concatenate(prompts).astype(np.int32),
        offsets=np.arange(len(order) + 1, dtype=np.int64) * (SHARED + OWN),
        output=output,
        max_new_tokens=np.where(known, output, CAP).astype(np.int32),
        known=known,
        source=np.zeros(len(order), np.int16),
    )


@pytest.mark.parametrize("policy", ["fcfs", "blend"])
def test_every_run_does_the_whole_workload_from_an_empty_cache(
    policy: str, llama: Path, tmp_path: Path
) -> None:
    setting = Setting(str(llama), "float32", 4096, threads=1, hardware="cpu")
    options = sglang_options(Configuration(policy, mixed_chunk=True), setting)
    options["max_running_requests"] = 4  # so that one request of a group can find the prefix of another
    workload = shuffled_groups()
    write_pool(tmp_path / "pool.npz", workload)
    worker = start_sglang(options, setting, tmp_path / "log")
    try:
        assert worker.ready()["kv_capacity"] == 4096
        runs = [worker.call({"pool": str(tmp_path / "pool.npz")}) for _ in range(2)]
    finally:
        worker.stop()
    for run in runs:  # the worker has compared the length of every answer
        assert run["seconds"] > 0
        assert run["retractions"] == 0
        assert run["prefill_tokens"] + run["cached_tokens"] == len(workload.tokens)
        assert 0 < run["cached_tokens"] <= (GROUPS * OF_EACH - GROUPS) * SHARED
        decoded = run["rows_per_decode"] * (run["steps"] - run["prefill_steps"])
        # The first token of an answer comes with its prompt; an unannounced end is seen a step late.
        assert decoded >= int(workload.output.sum()) - len(workload) - 1
    assert runs[0]["cached_tokens"] == runs[1]["cached_tokens"]

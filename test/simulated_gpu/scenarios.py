"""Runs in a process of its own, because a process has one platform: prints one JSON object.

python scenarios.py simulated      with SGLANG_PLATFORM=simulated_gpu
python scenarios.py real           with SGLANG_PLATFORM=portable_cpu: the admissions of a real model
"""

import contextlib
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import LLAMA_3_8B
from sglang.srt.blend.core.pool.workload import Workload

SMALL_POOL = {"max_total_tokens": 2048, "max_running_requests": 64, "chunked_prefill_size": 512}


def pool(seed: int, *, known: bool, vocabulary: int = 500) -> Workload:
    """40 requests in four groups with a shared prefix and short answers, 20 short ones with long answers."""
    rng = np.random.default_rng(seed)
    prefixes = rng.integers(3, vocabulary, (4, 60))
    prompts = [np.concatenate([prefixes[i % 4], rng.integers(3, vocabulary, 20)]) for i in range(40)]
    prompts += [rng.integers(3, vocabulary, 10) for _ in range(20)]
    output = np.concatenate([rng.integers(2, 6, 40), rng.integers(30, 60, 20)]).astype(np.int32)
    order = rng.permutation(60)
    lengths = np.array([len(prompts[i]) for i in order])
    output = output[order]
    return Workload(
        tokens=np.concatenate([prompts[i] for i in order]).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        output=output,
        max_new_tokens=output if known else np.full(60, 120, np.int32),
        known=np.full(60, known),
        source=np.zeros(60, np.int16),
        names=("test",),
    )


def long_prompts() -> Workload:
    """Two prompts of four chunks with unknown answers, so they go first, and a long answer; one fits."""
    lengths = np.array([1900, 1900, 900])
    tokens = np.random.default_rng(0).integers(3, 500, lengths.sum(), dtype=np.int32)
    output = np.array([4, 4, 1000], np.int32)
    return Workload(
        tokens=tokens,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        output=output,
        max_new_tokens=np.array([100, 100, 1000], np.int32),
        known=np.array([False, False, True]),
        source=np.zeros(3, np.int16),
        names=("test",),
    )


def known_lengths(tokens: np.ndarray, lengths: np.ndarray, output: np.ndarray) -> Workload:
    """Prompts of so many tokens, back to back, and answers whose lengths the requests fix."""
    return Workload(
        tokens=tokens,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        output=output,
        max_new_tokens=output,
        known=np.ones(len(output), np.bool_),
        source=np.zeros(len(output), np.int16),
        names=("test",),
    )


def three_long_answers() -> Workload:
    """Three answers that together nearly fill the small pool, among short ones; all lengths are known."""
    rng = np.random.default_rng(0)
    lengths, output = np.array([50] * 3 + [200] * 80), np.array([640, 600, 560] + [20] * 80, np.int32)
    arrival = rng.permutation(len(output))
    tokens = rng.integers(3, 500, lengths.sum(), dtype=np.int32)
    return known_lengths(tokens, lengths[arrival], output[arrival])


def long_answers(count: int) -> Workload:
    """Answers of a sixth to a third of the small pool among short ones; all lengths are known."""
    rng = np.random.default_rng(0)
    output = np.concatenate([rng.integers(350, 640, count), np.full(30, 20)]).astype(np.int32)
    lengths = np.where(output > 20, 40, 150)
    return known_lengths(rng.integers(3, 500, lengths.sum(), dtype=np.int32), lengths, output)


def chance_agreements() -> Workload:
    """600 random prompts behind a short system prompt, and long answers; all lengths are known.

    The first token of a prompt is one of 600; those in which it is the same share that one token by chance.
    """
    rng = np.random.default_rng(0)
    lengths, output = np.array([60] * 600 + [10] * 6), np.array([4] * 600 + [60] * 6, np.int32)
    arrival = rng.permutation(len(output))
    lengths, output = lengths[arrival], output[arrival]
    tokens = rng.integers(1000, 100_000, lengths.sum(), dtype=np.int32)
    for at in (np.cumsum(lengths) - lengths)[lengths == 60]:
        tokens[at : at + 6] = [3, 4, 5, 6, 7, 10 + rng.integers(600)]
    return known_lengths(tokens, lengths, output)


def large_prompts() -> Workload:
    """24 prompts of a fifth of the small pool; short answers of unknown length, with a distant cap."""
    rng = np.random.default_rng(0)
    lengths, output = rng.integers(100, 800, 24), rng.integers(8, 45, 24).astype(np.int32)
    return Workload(
        tokens=rng.integers(3, 500, lengths.sum(), dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        output=output,
        max_new_tokens=np.full(24, 128, np.int32),
        known=np.zeros(24, np.bool_),
        source=np.zeros(24, np.int16),
        names=("test",),
    )


def simulated() -> dict[str, Any]:
    from checkpoints import make_llama
    from sglang.srt.blend.core.step import step_maker
    from sglang.srt.blend.runtime.measured_hardware import MeasuredHardware
    from sglang.srt.hardware_backend.simulated_gpu import device
    from sglang.srt.hardware_backend.simulated_gpu.simulate import simulate

    def run(
        policy_name: str,
        engine: str,
        *,
        known: bool = False,
        slow: float = 0.0,
        model_config: dict[str, Any] = LLAMA_3_8B,
        workload: Workload | None = None,
        **server_args: Any,
    ) -> dict[str, Any]:
        admitted: list[str] = []
        reports: list[dict[str, Any]] = []
        forward = device.SimulatedDevice.forward

        def watched(self: Any, batch: Any) -> Any:
            time.sleep(slow)
            admitted.extend(new_prefills(batch))
            return forward(self, batch)

        def ended(self: Any) -> None:
            reports.append(asdict(self.report()))

        with (
            patched(device.SimulatedDevice, "forward", watched),
            patched(MeasuredHardware, "pool_ended", ended),
        ):
            result = simulate(
                workload or pool(1, known=known),
                policy=policy_name,
                engine=engine,
                hardware="a100-80gb",
                model_config=model_config,
                **server_args,
            )
        steps = result.steps
        return {
            "seconds": result.seconds,
            "python_seconds": result.python_seconds,
            "finished": result.finished.tolist(),
            "kv_capacity": result.kv_capacity,
            "sharing": result.sharing,
            "retractions": result.retractions,
            "decode_rows": steps["decode_rows"].tolist(),
            "prefill_tokens": steps["prefill_tokens"].tolist(),
            "kv_tokens": steps["kv_tokens"].tolist(),
            "step_seconds": steps["seconds"].tolist(),
            "prompt_tokens": result.prompt_tokens,
            "output_tokens": result.output_tokens,
            "admitted": admitted,
            "step_times": reports[-1] if reports else None,
        }

    small = SMALL_POOL
    chance = {"workload": chance_agreements(), "max_total_tokens": 4096, "chunked_prefill_size": 4096}
    with patched(step_maker, "SURPLUS", 0.0):
        without_spare = run("blend", "overlapped", **chance)
    with tempfile.TemporaryDirectory() as folder:
        tiny = json.loads((make_llama(Path(folder)) / "config.json").read_text())
    # As in `real`: the pacing of prefill depends on the model's step times.
    as_real = {"model_config": tiny, "dtype": "float32", **small}
    return {
        "whole_gpu": run("fcfs", "alternating"),
        "alternating": run("fcfs", "alternating", **small),
        "mixed": run("fcfs", "mixed", **small),
        "overlapped": run("fcfs", "overlapped", **small),
        "slow": run("fcfs", "mixed", slow=0.003, **small),
        "dfs": run("dfs", "mixed", **small),
        "lpm": run("lpm", "mixed", **small),
        "blend": run("blend", "overlapped", **small),
        "blend_long_prompts": run("blend", "overlapped", workload=long_prompts(), **small),
        "blend_three_long": run("blend", "alternating", workload=three_long_answers(), **small),
        "blend_guests": run("blend", "alternating", workload=long_answers(10), **small),
        "blend_overlapped_guests": run("blend", "overlapped", workload=long_answers(10), **small),
        "blend_chance": run("blend", "overlapped", **chance),
        "blend_chance_without_spare": without_spare,
        "fcfs_large": run("fcfs", "mixed", workload=large_prompts(), **small),
        "blend_large": run("blend", "mixed", workload=large_prompts(), blend_engine="alternating", **small),
        "blend_not_measured": run("blend", "overlapped", blend_measure="off", **small),
        **{
            f"blend_told_{name}{again}": run("blend", "overlapped", blend_hardware=name, **small)
            for name in ("h100", "l40s")
            for again in ("", "_again")
        },
        "blend_known": run("blend", "mixed", known=True, **small),
        "fcfs_tiny": run("fcfs", "mixed", known=True, **as_real),
        "blend_tiny": run("blend", "mixed", known=True, **as_real),
        "eight_gpus": run("fcfs", "mixed", tensor_parallel=8),
        "cramped": run(
            "fcfs", "mixed", **(small | {"max_total_tokens": 600, "schedule_conservativeness": 0.02})
        ),
    }


def real() -> dict[str, Any]:
    """Admissions when the tiny model computes: same pool, same sizes."""
    from checkpoints import make_llama
    from helpers import lone_scheduler

    admitted: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_llama(Path(folder))
        for policy in ("fcfs", "blend"):
            blend = {"blend_hardware": "a100-80gb", "blend_measure": "off"} if policy == "blend" else {}
            with lone_scheduler(
                checkpoint,
                simulated=False,
                schedule_policy=policy,
                enable_mixed_chunk=True,
                attention_backend="torch_native",
                **SMALL_POOL,
                **blend,
            ) as lone:
                seen: list[str] = []
                run_batch = lone.scheduler.run_batch

                def watched(batch: Any, *args: Any, run_batch: Any = run_batch, seen: list = seen) -> Any:
                    seen.extend(new_prefills(batch))
                    return run_batch(batch, *args)

                lone.scheduler.run_batch = watched
                workload = pool(1, known=True)
                for i in range(len(workload)):
                    tokens = workload.prompt_tokens(i).tolist()
                    lone.submit(tokens, int(workload.output[i]), rid=f"r{i}", sampling={"ignore_eos": True})
                lone.run()
                admitted[policy] = seen
    return admitted


def new_prefills(batch: Any) -> list[str]:
    """Request ids whose prompt is computed in this batch, in its order."""
    if not batch.forward_mode.is_extend():
        return []
    return [req.rid for req in batch.reqs[: len(batch.reqs) - len(batch.decoding_reqs or ())]]


@contextlib.contextmanager
def patched(owner: Any, name: str, value: Any) -> Any:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


if __name__ == "__main__":
    print(json.dumps({"simulated": simulated, "real": real}[sys.argv[1]]()))

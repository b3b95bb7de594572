"""Whole steps on a CPU: SGLang on this platform's kernels against SGLang on PyTorch's operators alone.

Two real engines answer the same requests in turn, all at once: first every prompt is prefilled, then all
decode together. Reported: prefill tokens/s, and milliseconds of a decode step, medians over the rounds.
The torch_native side is what SGLang does here without this project's kernels: attention backend torch_native,
every fused operator in PyTorch (SGLANG_CPU_KERNELS=off).

    python -m benchmark.cpu.steps --json steps.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from benchmark.offline.configurations import Configuration, Setting, sglang_options, start_sglang
from benchmark.offline.machine import add_machine_arguments, describe_machine, exit_on_sigterm
from benchmark.offline.pool_file import write_pool
from benchmark.offline.protocol import Message

from sglang.srt.blend.core.pool.workload import Workload

SIDES = {"torch_native": "off", "portable_cpu": "require"}
"""--attention-backend, and SGLANG_CPU_KERNELS with it."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.cpu.steps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, default=24, help="sequences (default: 24)")
    parser.add_argument("--context", type=int, default=512, help="tokens of each prompt (default: 512)")
    parser.add_argument("--steps", type=int, default=16, help="decode steps per round (default: 16)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--out", type=Path, default=Path("cpu-steps"), metavar="DIR", help="results and logs")
    add_machine_arguments(parser)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokens = arguments.context + arguments.steps + 8
    setting = Setting.of(arguments, kv_tokens=arguments.batch * tokens + 4096)
    pool = arguments.out / "pool.npz"
    write_pool(pool, same_length_pool(arguments.batch, arguments.context, arguments.steps + 1))
    rounds: dict[str, list[Message]] = {side: [] for side in SIDES}
    with ExitStack() as up:
        workers = {}
        for side, kernels in SIDES.items():
            options = sglang_options(Configuration("fcfs", mixed_chunk=False), setting)
            options["attention_backend"] = side
            log = arguments.out / f"{side}.log"
            workers[side] = start_sglang(options, setting, log, SGLANG_CPU_KERNELS=kernels)
            up.callback(workers[side].stop)
            workers[side].ready()
        for number in range(arguments.rounds):
            for side, worker in workers.items():
                rounds[side].append(worker.call({"pool": str(pool)}))
                print(f"round {number + 1} {side}: {rounds[side][-1]['seconds']:.1f} s", flush=True)
    figures = summarise(rounds)
    print(f"{arguments.batch} sequences of {arguments.context} tokens, {setting.dtype}")
    for side in SIDES:
        print(
            f"{side:<14}prefill {figures[side]['prefill_tokens_per_second']:8,.0f} tokens/s   "
            f"decode step {figures[side]['decode_step_ms']:7.1f} ms"
        )
    print(f"portable_cpu is {figures['prefill_ratio']:.2f}x and {figures['decode_ratio']:.2f}x as fast")
    record = {
        "machine": describe_machine(),
        "setting": setting.record(),
        "shape": {key: getattr(arguments, key) for key in ("batch", "context", "steps")},
        "rounds": rounds,
        "figures": figures,
    }
    (arguments.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


def same_length_pool(batch: int, context: int, output: int) -> Workload:
    """Requests of equal lengths that share nothing."""
    rng = np.random.default_rng(0)
    lengths = np.full(batch, output, np.int32)
    return Workload(
        tokens=rng.integers(1000, 32_000, batch * context, dtype=np.int32),
        offsets=np.arange(batch + 1, dtype=np.int64) * context,
        output=lengths,
        max_new_tokens=lengths,
        known=np.ones(batch, np.bool_),
        source=np.zeros(batch, np.int16),
    )


def summarise(rounds: dict[str, list[Message]]) -> dict[str, Any]:
    """Medians of each side, and medians of the ratios of each round."""
    keys = ("prefill_tokens_per_second", "decode_step_ms")
    figures: dict[str, Any] = {
        side: {key: statistics.median(run[key] for run in runs) for key in keys}
        for side, runs in rounds.items()
    }
    pairs = list(zip(rounds["torch_native"], rounds["portable_cpu"], strict=True))
    figures["prefill_ratio"] = statistics.median(ours[keys[0]] / theirs[keys[0]] for theirs, ours in pairs)
    figures["decode_ratio"] = statistics.median(theirs[keys[1]] / ours[keys[1]] for theirs, ours in pairs)
    return figures


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())

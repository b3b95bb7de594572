"""Real engines on this GPU, one policy after another: the same answers, how fast, and nothing left behind.

Each policy's engine answers one pool with greedy sampling and an empty cache: half of its tokens are in
requests with long prompts that share prefixes of mixed lengths and short answers, half in requests with short
prompts and long answers. Before that it answers the pool in reverse order, which warms it up. How many of the
first policy's answers change between both, for nothing but the company that a request has in its batch, is
what the other policies are to be compared with. All answers must be the same under --deterministic, which
passes SGLang's --enable-deterministic-inference; it is slower, so take speeds from a run without it.

Checked after each policy: every answer has its length, no KV token is held, no process lives on, and the
GPU's memory is as free as before. Writes check.json into --out.

examples:
  python -m benchmark.gpu.check --model-path meta-llama/Llama-3.1-8B-Instruct
  python -m benchmark.gpu.check --model-path MODEL --deterministic --policies fcfs,blend
  python -m benchmark.gpu.check --model-path MODEL --engine-options '{"enable_mixed_chunk": true}'
  python -m benchmark.gpu.check --device cpu --kv-tokens 2048 --length-scale 0.05 --demand 2

exit codes: 0 passed, or skipped without a GPU; 1 answers differ or something is left; 2 bad usage;
3 an engine failed
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from benchmark.offline.machine import exit_on_sigterm
from benchmark.offline.pool_file import write_pool
from benchmark.offline.protocol import Worker, WorkerFailed
from benchmark.provenance import commit

from sglang.batch.smollm2 import NAME, ModelUnavailable, resolve_model_path
from sglang.batch.usage import BAD_USAGE, BadUsage
from sglang.srt.blend.core.pool.workload import Workload

POLICIES = ("fcfs", "lpm", "dfs-weight", "blend")
REVERSED = "reversed, warm-up"

FAILED, ENGINE_FAILED = 1, 3
"""Exit codes beside 0 and 2."""

SHARED, OWN, SHORT_ANSWER = (64, 1536), (32, 256), (2, 32)
"""Tokens at least and at most, of requests with long prompts: what a group shares, the rest, the answer."""

PROMPT, LONG_ANSWER = (32, 128), (256, 1024)
"""The same of requests with long answers."""

GROUP = 8
"""Requests that share a prefix."""

MEMORY_TOLERANCE = 64 << 20
"""Bytes of GPU memory that may be missing in the end: the driver keeps some for itself."""

GONE_SECONDS = 30.0
"""Time in which processes end and memory comes back."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one policy did.

    Attributes:
        seconds: from the first admission to the last answer.
        tokens_per_second: of prompts and answers.
        ratio: speed by the first policy's.
        same: answers equal to the first policy's, of `requests`.
        cached_tokens: prompt tokens from the cache.
        held: KV tokens that nobody could have in the end.
        processes: that lived on; memory: bytes of the GPU that did not come back.
    """

    policy: str
    requests: int
    seconds: float
    tokens_per_second: float
    ratio: float
    same: int
    cached_tokens: int
    held: int
    processes: int
    memory: int


def main(argv: list[str] | None = None) -> int:
    try:
        options = parse(argv)
        if options.device == "cuda" and not gpu_is_here():
            print("gpu-check: skipped: no NVIDIA GPU here")
            return 0
        options.out.mkdir(parents=True, exist_ok=True)
        outcomes = list(check(options, start_worker))
    except (BadUsage, ModelUnavailable) as error:
        print(f"gpu-check: error: {error}", file=sys.stderr)
        return BAD_USAGE
    except WorkerFailed as error:
        print(f"gpu-check: error: an engine failed: {error}", file=sys.stderr)
        return ENGINE_FAILED
    wrong = complaints(outcomes, deterministic=options.deterministic)
    record = {
        "commit": commit(),
        "model": Path(options.model_path).name,
        "deterministic": options.deterministic,
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "wrong": wrong,
    }
    (options.out / "check.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table(outcomes))
    print("\n".join(f"gpu-check: FAILED: {text}" for text in wrong) or "gpu-check: passed")
    return FAILED if wrong else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    description, _, examples = (__doc__ or "").partition("\nexamples:")
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.gpu.check",
        description=description,
        epilog=f"examples:{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model-path", default=NAME, help="default: %(default)s, embedded; too small for speeds"
    )
    parser.add_argument(
        "--policies", default=",".join(POLICIES), help="the first is what others are held against"
    )
    parser.add_argument("--deterministic", action="store_true", help="answers must be the same; slower")
    parser.add_argument(
        "--demand",
        type=float,
        default=4.0,
        help="tokens of the pool by the KV capacity (default: %(default)s)",
    )
    parser.add_argument("--length-scale", type=float, default=1.0, help="times as long requests (default: 1)")
    parser.add_argument("--kv-tokens", type=int, help="KV capacity (default: what SGLang takes)")
    parser.add_argument(
        "--engine-options",
        default="{}",
        metavar="JSON",
        help="further arguments of sgl.Engine, for all policies",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the pool")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the check itself"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), metavar="DIR")
    options = parser.parse_args(argv)
    options.policies = tuple(options.policies.split(","))
    for policy in options.policies:
        if policy not in POLICIES:
            raise BadUsage(f"--policies {policy}: choose among {', '.join(POLICIES)}")
    if options.demand <= 0 or not 0 < options.length_scale <= 1:
        raise BadUsage("--demand must be positive, and --length-scale above 0 and at most 1")
    try:
        options.engine_options = dict(json.loads(options.engine_options))
    except (ValueError, TypeError) as error:
        raise BadUsage(f"--engine-options {options.engine_options}: no JSON object ({error})") from error
    return options


def gpu_is_here() -> bool:
    import torch

    return torch.cuda.is_available() and not torch.version.hip


def make_pool(capacity: int, demand: float, scale: float, seed: int) -> Workload:
    """A pool in random order whose tokens are `demand` times the KV capacity, in equal shares of both kinds.

    Args:
        capacity: tokens.
        scale: of all lengths.
    """
    rng = np.random.default_rng(seed)

    def tokens(bounds: tuple[int, int]) -> int:
        low, high = (max(round(bound * scale), 1) for bound in bounds)
        return int(rng.integers(low, high + 1))

    requests: list[tuple[Any, int]] = []
    sums = [0, 0]
    while sum(sums) < demand * capacity:
        kind = int(sums[1] < sums[0])
        prefix = _text(rng, tokens(SHARED)) if kind == 0 else _text(rng, 0)
        own, answer = (OWN, SHORT_ANSWER) if kind == 0 else (PROMPT, LONG_ANSWER)
        for _ in range(GROUP):
            request = np.concatenate([prefix, _text(rng, tokens(own))]), tokens(answer)
            requests.append(request)
            sums[kind] += len(request[0]) + request[1]
    order = rng.permutation(len(requests))
    prompts = [requests[i][0] for i in order]
    output = np.array([requests[i][1] for i in order], np.int32)
    known = rng.random(len(order)) < 0.5
    longest = max(round(LONG_ANSWER[1] * scale), SHORT_ANSWER[1])
    return Workload(
        tokens=np.concatenate(prompts).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum([len(prompt) for prompt in prompts])]).astype(np.int64),
        output=output,
        max_new_tokens=np.where(known, output, longest).astype(np.int32),
        known=known,
        source=np.zeros(len(order), np.int16),
    )


def _text(rng: np.random.Generator, length: int) -> np.ndarray[Any, Any]:
    return rng.integers(3, 256, length)  # tokens that every vocabulary has


def engine_options(options: argparse.Namespace, policy: str) -> dict[str, Any]:
    """Keyword arguments of `sgl.Engine`."""
    chosen: dict[str, Any] = {
        "model_path": resolve_model_path(options.model_path),
        "schedule_policy": policy,
        "skip_tokenizer_init": True,
        "random_seed": 0,
        "log_level": "error",
        **options.engine_options,
    }
    if options.kv_tokens:
        chosen["max_total_tokens"] = options.kv_tokens
    if options.deterministic:
        chosen["enable_deterministic_inference"] = True
    if options.device == "cpu":
        chosen |= {"device": "cpu", "dtype": "float32"}
    return chosen


def start_worker(options: argparse.Namespace, policy: str) -> Worker:
    """An engine in a process of its own, starting."""
    command = [
        sys.executable,
        "-m",
        "benchmark.gpu.check_worker",
        json.dumps(engine_options(options, policy)),
    ]
    # A leak that upstream finds when it is idle ends the engine instead of being logged.
    environment = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1"}
    if options.device == "cpu":
        environment |= {"SGLANG_PLATFORM": "portable_cpu", "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    return Worker(command, options.out / f"{policy}.log", environment)


def check(
    options: argparse.Namespace, start: Callable[[argparse.Namespace, str], Worker]
) -> Iterator[Outcome]:
    """Run every policy; the first one's warm-up is told, too.

    Raises:
        WorkerFailed: an engine did not start, died, or answered with a wrong length.
    """
    pool: Workload | None = None
    first: Mapping[str, Any] = {}
    path = options.out / "pool.npz"
    for policy in options.policies:
        before = free_memory(options.device)
        worker = start(options, policy)
        try:
            capacity = int(worker.ready()["kv_capacity"])
            if pool is None:
                pool = make_pool(capacity, options.demand, options.length_scale, options.seed)
                say(f"{len(pool)} requests, {pool.total_tokens:,} tokens, KV capacity {capacity:,}")
            write_pool(path, pool.take(np.arange(len(pool))[::-1]))
            warm_up = worker.call({"pool": str(path)})
            warm_up["answers"].reverse()
            write_pool(path, pool)
            run = worker.call({"pool": str(path)})
            children = psutil.Process(worker.pid).children(recursive=True)
        finally:
            worker.stop()
        left = [process for process in psutil.wait_procs(children, GONE_SECONDS)[1] if lives(process)]
        rest = pool.total_tokens, len(left), missing_memory(options.device, before)
        if not first:
            first = run
            yield outcome(f"{policy}, {REVERSED}", warm_up, first, *rest)
        yield outcome(policy, run, first, *rest)


def outcome(
    policy: str, run: Mapping[str, Any], first: Mapping[str, Any], tokens: int, processes: int, memory: int
) -> Outcome:
    """Hold a run against the first one."""
    pairs = zip(run["answers"], first["answers"], strict=True)
    return Outcome(
        policy=policy,
        requests=len(run["answers"]),
        seconds=run["seconds"],
        tokens_per_second=tokens / run["seconds"],
        ratio=first["seconds"] / run["seconds"],
        same=sum(answer == other for answer, other in pairs),
        cached_tokens=run["cached_tokens"],
        held=run["held"],
        processes=processes,
        memory=memory,
    )


def complaints(outcomes: Sequence[Outcome], *, deterministic: bool) -> list[str]:
    """What is wrong, in words; answers may differ unless inference is deterministic."""
    wrong = []
    for one in outcomes:
        if deterministic and one.same < one.requests:
            wrong.append(f"{one.policy}: {one.requests - one.same} of {one.requests} answers differ")
        if one.held:
            wrong.append(f"{one.policy}: {one.held} KV tokens are held though nothing runs")
        if one.processes:
            wrong.append(f"{one.policy}: {one.processes} processes live on")
        if one.memory > MEMORY_TOLERANCE:
            wrong.append(f"{one.policy}: {one.memory >> 20} MiB of GPU memory did not come back")
    return wrong


def table(outcomes: Sequence[Outcome]) -> str:
    """One line for each run."""
    lines = [
        f"{'policy':<26}{'seconds':>10}{'tokens/s':>12}{'ratio':>8}{'same answers':>16}{'from cache':>12}"
    ]
    for one in outcomes:
        same = f"{one.same} of {one.requests}"
        lines.append(
            f"{one.policy:<26}{one.seconds:>10.1f}{one.tokens_per_second:>12,.0f}{one.ratio:>8.2f}"
            f"{same:>16}{one.cached_tokens:>12,}"
        )
    return "\n".join(lines)


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def free_memory(device: str) -> int:
    """Bytes of the first GPU's memory that nobody has; 0 on a CPU."""
    if device == "cpu":
        return 0
    import torch

    return int(torch.cuda.mem_get_info(0)[0])


def missing_memory(device: str, before: int) -> int:
    """Bytes that are less free than before, once they have had time to come back."""
    deadline = time.monotonic() + GONE_SECONDS
    while (missing := before - free_memory(device)) > MEMORY_TOLERANCE and time.monotonic() < deadline:
        time.sleep(0.5)
    return max(missing, 0)


def say(text: str) -> None:
    print(f"gpu-check: {text}", flush=True)


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())

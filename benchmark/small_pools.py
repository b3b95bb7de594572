"""Small pools in tight KV, lengths unknown: is blend ever slower than the best of SGLang's own policies?

    python -m benchmark.small_pools --json build/small_pools.json
    python -m benchmark.small_pools --engine mixed --pool 17   # one pool again
    python -m benchmark.small_pools --baselines old.json       # blend alone, the others as they were

Each pool of 2 to 200 requests runs through SGLang's scheduler on a simulated A100-80GB (Llama-3-8B) under
blend and under fcfs, lpm, dfs-weight and lof; the baseline of a pool is whichever of these was fastest there.
Seconds are modelled. Printed are the median of best / blend, the share of pools in which blend is slower by
more than 2%, and the worst pools with their numbers. Exit code 1 if there are such pools.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from benchmark import provenance
from benchmark.paper.arguments import add_jobs, at_least_one
from benchmark.paper.compare import WORK
from benchmark.paper.models import MODELS
from benchmark.workloads.lengths import LengthDistribution as Lengths
from benchmark.workloads.traces import VOCABULARY
from numpy.typing import NDArray
from tqdm import tqdm

from sglang.batch.plan.schedules import simulator_processes
from sglang.srt.blend.core.cost.engines import load_engine
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork
from sglang.srt.blend.core.pool.workload import Workload

if TYPE_CHECKING:
    from sglang.srt.hardware_backend.simulated_gpu.simulate import SimulationResult

ENGINES = ("alternating", "mixed", "overlapped")
UPSTREAM = ("fcfs", "lpm", "dfs-weight", "lof")
HARDWARE, CHUNK, SLOWER = "a100-80gb", 2048, 0.02

Ints = NDArray[np.int64]

Draw = Callable[[int, int], tuple[Workload, list[str], int]]
"""Of a seed and a number: a pool, kinds of its requests, and KV tokens of the cache."""

KINDS = {
    "questions": (Lengths(30, 25, 2, 128), 128),
    "labels": (Lengths(3, 2, 1, 6), 16),
    "writing": (Lengths(100, 80, 4, 384), 512),
    "samples": (Lengths(60, 50, 4, 256), 256),
    "alike": (Lengths(60, 6, 30, 90), 128),
}
"""Output tokens of the answers of each kind, and the cap that a user sets for them."""


@dataclass(frozen=True, slots=True)
class Row:
    """A pool under one engine.

    Attributes:
        seconds: modelled, by policy.
        best: the fastest of upstream's policies; ratio: its seconds / blend's.
    """

    engine: str
    pool: int
    requests: int
    kinds: list[str]
    kv_tokens: int
    seconds: dict[str, float]
    retractions: int
    best: str
    ratio: float


def random_pool(seed: int, number: int) -> tuple[Workload, list[str], int]:
    """Requests of one to three kinds, as they are or shuffled; their kinds, and KV tokens of the cache."""
    rng = np.random.default_rng([seed, number])
    size = round(2 * 100 ** rng.random())
    kinds = [str(kind) for kind in rng.choice(list(KINDS), rng.integers(1, 4), replace=False)][:size]
    prompts: list[NDArray[np.int32]] = []
    output, caps = [], []
    for kind, part in zip(kinds, np.array_split(np.arange(size), len(kinds)), strict=True):
        prompts += _prompts(kind, len(part), rng)
        lengths, cap = KINDS[kind]
        output.append(lengths.draw(len(part), rng))
        caps.append(np.full(len(part), cap))
    workload = pool_of(prompts, np.concatenate(output), np.concatenate(caps), name="small pool")
    if rng.random() < 0.5:
        workload = workload.take(rng.permutation(size))
    longest = int((workload.prompt + workload.max_new_tokens).max())
    tight = int(workload.total_tokens * rng.uniform(0.1, 0.6))
    return workload, kinds, max(tight, longest * 5 // 4 + 16)  # upstream admits none that nearly fills it


def pool_of(prompts: Sequence[NDArray[np.int32]], output: Ints, cap: Ints, *, name: str) -> Workload:
    """Requests with these prompts, output tokens (n,) that nobody knows, and caps (n,)."""
    return Workload(
        tokens=np.concatenate(prompts).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum([len(prompt) for prompt in prompts])]),
        output=output.astype(np.int32),
        max_new_tokens=cap.astype(np.int32),
        known=np.zeros(len(prompts), np.bool_),
        source=np.zeros(len(prompts), np.int16),
        names=(name,),
    )


def _prompts(kind: str, count: int, rng: np.random.Generator) -> list[NDArray[np.int32]]:
    """So many prompts of a kind: who shares what with whom."""

    def text(low: int, high: int) -> NDArray[np.int32]:
        return rng.integers(1000, VOCABULARY, rng.integers(low, high), dtype=np.int32)

    if kind == "questions":
        readers = int(rng.integers(2, 9))
        texts = [text(200, 1200) for _ in range(-(-count // readers))]
        return [np.concatenate([texts[i // readers], text(8, 40)]) for i in range(count)]
    if kind == "labels":
        examples = text(100, 600)
        return [np.concatenate([examples, text(10, 120)]) for _ in range(count)]
    if kind == "samples":
        samples = int(rng.integers(2, 17))
        texts = [text(50, 300) for _ in range(-(-count // samples))]
        return [texts[i // samples] for i in range(count)]
    return [text(200, 201) if kind == "alike" else text(20, 80) for _ in range(count)]


def run_some(
    draw: Draw, engine: str, seed: int, numbers: Sequence[int], known: Sequence[dict[str, float]]
) -> list[Row]:
    """Some pools, in a process on the simulated GPU's platform; see `run`."""
    logging.disable(logging.ERROR)  # each scheduler's start
    return [run(draw, engine, seed, number, times) for number, times in zip(numbers, known, strict=True)]


def run(draw: Draw, engine: str, seed: int, number: int, known: dict[str, float]) -> Row:
    """One pool under every policy, or under those whose seconds are not known."""
    workload, kinds, capacity = draw(seed, number)
    seconds, retractions = dict(known), 0
    for policy in ("blend", *UPSTREAM):
        if policy in known:
            continue
        result = simulate_pool(workload, policy, engine, capacity)
        seconds[policy] = round(modelled_seconds(result, engine), 4)
        retractions = result.retractions if policy == "blend" else retractions
    best = min(UPSTREAM, key=lambda policy: seconds[policy])
    ratio = round(seconds[best] / seconds["blend"], 4)
    return Row(engine, number, len(workload), kinds, capacity, seconds, retractions, best, ratio)


def simulate_pool(workload: Workload, policy: str, engine: str, capacity: int) -> SimulationResult:
    from sglang.srt.hardware_backend.simulated_gpu.simulate import simulate

    return simulate(
        workload,
        policy=policy,
        engine=engine,
        hardware=HARDWARE,
        model_config=MODELS["llama-3-8b"].config,
        max_total_tokens=capacity,
        chunked_prefill_size=CHUNK,
    )


def modelled_seconds(result: SimulationResult, engine: str) -> float:
    """Modelled seconds of the steps on an engine."""
    times = StepTimeModel(ModelShape.from_config(MODELS["llama-3-8b"].config), load_hardware(HARDWARE))
    return float(load_engine(engine)(times, StepWork(**{name: result.steps[name] for name in WORK})).sum())


class Baselines:
    """Seconds of upstream's policies in an earlier run, which nothing of ours changes; none without a file.

    Args:
        file: JSON of a run with the same seed.
    """

    def __init__(self, file: Path | None, seed: int) -> None:
        told = {"commit": None, "seed": seed, "pools": []} if file is None else json.loads(file.read_text())
        if told["seed"] != seed:
            raise SystemExit(f"--baselines {file}: is of seed {told['seed']}, not {seed}")
        self.commit: str | None = told.get("baselines", told["commit"])
        self._rows = {(row["engine"], row["pool"]): row["seconds"] for row in told["pools"]}

    def of(self, engine: str, number: int) -> dict[str, float]:
        row = self._rows.get((engine, number), {})
        return {policy: row[policy] for policy in UPSTREAM if policy in row}


def report(rows: Sequence[Row], worst: int = 8) -> Iterator[str]:
    """A line for each engine, then the worst pools."""
    for engine in dict.fromkeys(row.engine for row in rows):
        ratios = [row.ratio for row in rows if row.engine == engine]
        slower = sum(ratio < 1 / (1 + SLOWER) for ratio in ratios) / len(ratios)
        yield (
            f"{engine:<12}{len(ratios):>4} pools  median {median(ratios):.3f}x  worst {min(ratios):.3f}x  "
            f"slower by more than {SLOWER:.0%}: {slower:.1%}"
        )
    for row in sorted(rows, key=lambda row: row.ratio)[:worst]:
        yield (
            f"  {row.ratio:.3f}x  {row.engine}, pool {row.pool}: {row.requests} requests "
            f"({', '.join(row.kinds)}), {row.kv_tokens} KV tokens, best {row.best}, "
            f"{row.retractions} retractions"
        )


def main(
    draw: Draw = random_pool,
    name: str = "small_pools",
    description: str = __doc__,
    *,
    pools: int = 200,
    part: int = 10,
) -> int:
    """Run pools, as the command line says; the exit code.

    Args:
        draw: draws them. pools: how many by default.
        name, description: of the benchmark.
        part: pools of one process: each of its schedulers leaves a dozen threads of gloo behind.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmark.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pools", type=at_least_one, default=pools, help="of each engine")
    parser.add_argument("--pool", type=int, metavar="N", help="run this pool alone")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="may be repeated; default is all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every pool")
    parser.add_argument(
        "--baselines", type=Path, metavar="FILE", help="JSON that has the other policies' seconds"
    )
    add_jobs(parser)
    arguments = parser.parse_args()
    code, rows = provenance.commit(), []
    numbers = range(arguments.pools) if arguments.pool is None else [arguments.pool]
    engines = arguments.engine or ENGINES
    known = Baselines(arguments.baselines, arguments.seed)
    parts = [numbers[begin : begin + part] for begin in range(0, len(numbers), part)]
    with (
        simulator_processes(arguments.jobs) as executor,
        tqdm(total=len(engines) * len(numbers), unit="pool", smoothing=0) as progress,
    ):
        tasks = [
            executor.submit(run_some, draw, engine, arguments.seed, some, [known.of(engine, n) for n in some])
            for engine in engines
            for some in parts
        ]
        for task in tasks:
            rows += task.result()
            progress.update(len(rows) - progress.n)
    print("\n".join(report(rows)))
    if arguments.json is not None:
        command = shlex.join(["python", "-m", f"benchmark.{name}", *sys.argv[1:]])
        written = {"command": command, "commit": code, "seed": arguments.seed}
        if known.commit is not None:
            written["baselines"] = known.commit
        pools = [asdict(row) for row in rows]
        arguments.json.write_text(json.dumps(written | {"pools": pools}, indent=1) + "\n")
    return 1 if any(row.ratio < 1 / (1 + SLOWER) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

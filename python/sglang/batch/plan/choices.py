"""How many replicas on which GPUs: what each choice takes and costs, and which of them to rent.

A choice ends with the last of its parts. The pool is divided as replicas divide it, and the part with the
longest practical optimum is simulated, or an excerpt of it, scaled as the rest of the plan is. The other
parts are not simulated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from sglang.batch.plan.excerpt import choose_excerpt
from sglang.batch.plan.gpus import cost_model, optimum_seconds
from sglang.batch.plan.prompts import PlannedModel
from sglang.batch.plan.schedules import NotSimulated, Schedule, Simulated, simulate_all
from sglang.srt.blend.core.cost.engines import engines_on
from sglang.srt.blend.core.cost.step_time import StepTimeModel
from sglang.srt.blend.core.order.sharding import shard
from sglang.srt.blend.core.pool.workload import Workload

NO_DEARER = 1.05
"""Ratio to the least cost up to which a choice that ends sooner is recommended: the time model errs by 3 to
4%."""


@dataclass(frozen=True)
class GPUPool:
    """A pool on one kind of GPU.

    Attributes:
        name: of the profile, as simulations load it again.
        workload: the requests that fit there.
        times: of one GPU of those that share the model.
    """

    name: str
    workload: Workload
    model: PlannedModel
    times: StepTimeModel


@dataclass(frozen=True)
class Choice:
    """Some replicas on one kind of GPU.

    Attributes:
        hardware: name of the profile.
        tensor_parallel: GPUs of each replica.
        requests: of the file that fit there.
        seconds: until the last answer, without loading the model; None where a simulation failed.
        engine: on which that is least.
        simulated: requests that were simulated of the longest part; 0 where `seconds` is its practical
            optimum, a bound.
        longest: requests of the longest part.
        sharing_kept: share of the pool's possible sharing that its division keeps, 0 to 1.
        price: of one GPU for an hour, in the user's currency; None if unknown.
    """

    hardware: str
    replicas: int
    tensor_parallel: int
    requests: int
    seconds: float | None
    engine: str | None
    simulated: int
    longest: int
    sharing_kept: float
    price: float | None

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        return self.replicas * self.tensor_parallel

    @property
    def gpu_hours(self) -> float | None:
        """Hours of all GPUs, each until the last answer."""
        return None if self.seconds is None else self.gpus * self.seconds / 3600.0

    @property
    def cost(self) -> float | None:
        """What these hours cost; None without a price."""
        return None if self.price is None or self.gpu_hours is None else self.price * self.gpu_hours

    def text(self) -> str:
        """Say it in a few words, as in "4 x l4 for 3.1 h"."""
        words = f"{self.gpus} x {self.hardware} for {duration(self.seconds)}"
        return words if self.cost is None else f"{words} ({self.cost:,.2f})"


def find_choices(
    executor: ProcessPoolExecutor,
    pools: Sequence[GPUPool],
    replicas: Sequence[int],
    *,
    policy: str,
    engines: Sequence[str],
    limit: int,
    prices: Mapping[str, float],
) -> Iterator[tuple[Choice, list[NotSimulated]]]:
    """Find what every number of replicas takes on every kind of GPU.

    Args:
        policy: of each replica.
        engines: of which each choice takes the fastest that its GPU has.
        limit: requests that are simulated of a part at most; 0 gives practical optima.
        prices: of one GPU for an hour, by `GPUPool.name`.

    Yields:
        Each choice, with the simulations that failed.
    """
    for pool in pools:
        cost, workload = cost_model(pool.times), pool.workload
        here = [name for name in engines if name in engines_on(pool.times.hardware)]
        for count in replicas:
            shards = shard(workload.tokens, workload.offsets, workload.output, cost, count)
            parts = [workload.take(part.requests) for part in shards.parts if len(part.requests)]
            bounds = [[optimum_seconds(part, pool.times, name) for name in here] for part in parts]
            longest = max(range(len(parts)), key=lambda i: sum(bounds[i]))
            seconds = dict(zip(here, bounds[longest], strict=True))
            failed: list[NotSimulated] = []
            simulated = 0
            if limit:
                seconds, failed, simulated = _simulated(
                    executor, pool, parts[longest], seconds, policy=policy, limit=limit
                )
            engine = min(seconds, key=lambda name: seconds[name], default=None)
            choice = Choice(
                hardware=pool.times.hardware.name,
                replicas=count,
                tensor_parallel=pool.times.shape.tensor_parallel,
                requests=len(workload),
                seconds=None if engine is None else seconds[engine],
                engine=engine,
                simulated=simulated,
                longest=len(parts[longest]),
                sharing_kept=shards.sharing_kept,
                price=prices.get(pool.name),
            )
            yield choice, failed


def _simulated(
    executor: ProcessPoolExecutor,
    pool: GPUPool,
    part: Workload,
    optimum: Mapping[str, float],
    *,
    policy: str,
    limit: int,
) -> tuple[dict[str, float], list[NotSimulated], int]:
    """Simulate a part on each engine: seconds of the whole part, what failed, requests simulated."""
    chosen = choose_excerpt(part, limit, cost_model(pool.times))
    excerpt = part if len(chosen) == len(part) else part.take(chosen)
    seconds, failed = {}, []
    for run in simulate_all(
        executor,
        [Schedule(policy, engine) for engine in optimum],
        excerpt,
        pool.model,
        hardware=pool.name,
        tensor_parallel=pool.times.shape.tensor_parallel,
    ):
        engine = run.schedule.engine
        if isinstance(run, Simulated):
            scale = optimum[engine] / optimum_seconds(excerpt, pool.times, engine)
            seconds[engine] = run.seconds * scale
        else:
            failed.append(run)
    return seconds, failed, len(excerpt)


def recommended(choices: Sequence[Choice]) -> list[Choice]:
    """Choose one number of replicas for each kind of GPU, the least cost first.

    That is the one that ends first of those that take at most NO_DEARER times the least GPU-hours. Where a
    price is missing they stay in order: nothing compares hours of different GPUs.
    """
    best = []
    for hardware in dict.fromkeys(choice.hardware for choice in choices):
        hours = {
            choice: choice.gpu_hours
            for choice in choices
            if choice.hardware == hardware and choice.gpu_hours is not None
        }
        least = min(hours.values(), default=0.0)
        cheap = [choice for choice, value in hours.items() if value <= NO_DEARER * least]
        best += sorted(cheap, key=lambda choice: choice.seconds or 0.0)[:1]
    if all(choice.cost is not None for choice in best):
        best.sort(key=lambda choice: choice.cost or 0.0)
    return best


def choice_lines(choices: Sequence[Choice], requests: int) -> Iterator[str]:
    """Write the choices for the report, a line at a time.

    Args:
        requests: of the file that can be run on the plan's own hardware.
    """
    simulated = all(choice.simulated for choice in choices)
    what = "simulated" if simulated else "practical optimum, a bound"
    yield f"\n  replicas ({what}; a replica's part is planned by itself; loading the model is left out)"
    yield "    replicas  GPUs                    time  GPU-hours       cost  sharing kept  engine"
    for choice in choices:
        hours, cost = choice.gpu_hours, choice.cost
        yield (
            f"    {choice.replicas:>8}  {f'{choice.gpus} x {choice.hardware}':<16}"
            f"{duration(choice.seconds):>12}{'-' if hours is None else f'{hours:,.3g}':>11}"
            f"{'-' if cost is None else f'{cost:,.2f}':>11}{choice.sharing_kept:>14.1%}"
            f"  {choice.engine or 'not simulated'}"
        )
    best = recommended(choices)
    if best:
        yield "    recommended: " + ", or ".join(choice.text() for choice in best)
        yield (
            f"    the soonest end for at most {NO_DEARER - 1:.0%} more GPU-hours than needed"
            + (
                ", the cheapest GPU first"
                if all(choice.cost is not None for choice in best)
                else "; --price GPU=AMOUNT tells what an hour of each costs"
            )
        )
    if simulated:
        yield "    Simulated was the part that takes longest; the others, as large as that, are not."
        if any(choice.simulated < choice.longest for choice in choices):
            most = max(choice.simulated for choice in choices)
            yield f"    Of larger parts {most:,} requests stand for all, scaled up by the work they are."
    for name, left in {choice.hardware: choice.requests for choice in choices}.items():
        if left < requests:
            yield f"    {requests - left:,} requests do not fit on {name} and are left out there"


def duration(seconds: float | None) -> str:
    """Write seconds as people say them.

    >>> duration(42), duration(1800), duration(11_160), duration(None)
    ('42 s', '30 min', '3.1 h', '-')
    """
    if seconds is None:
        return "-"
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.{0 if unit == 'min' or seconds >= 100 * size else 1}f} {unit}"
    return f"{seconds:.3g} s"

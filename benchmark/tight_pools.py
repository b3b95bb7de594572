"""Random pools in which a prompt hardly fits: does blend answer whatever first come first served answers?

    python -m benchmark.tight_pools --json benchmark/results/tight_pools.json

Each pool runs twice through SGLang's scheduler on a simulated GPU, under fcfs and under blend. Counted are
requests that blend aborts and fcfs answers, answers with another number of tokens, pools that do not end,
schedulers that crash, and KV that is not free when a pool has ended. A server of random sizes serves some
pools one after another, because building one takes longer than a pool. Exit code 1 if blend fails anywhere;
the server and the pool are named, and --server N runs that server alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import provenance
from benchmark.paper.arguments import at_least_one
from tqdm import tqdm

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler

TURNS = 5_000
"""Of the scheduler's loop, after which a pool will not end; the longest take some hundreds."""

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 4096,
    "eos_token_id": 2,
}
"""Its steps are short, and only their order matters here."""


@dataclass(frozen=True)
class Server:
    """A server's hardware, its KV tokens, tokens of a page and of a chunk, and how its passes are made.

    On slow hardware blend paces prefill by fewer tokens than a page has.
    """

    hardware: str
    capacity: int
    page: int
    chunk: int
    passes: str
    overlap_schedule: bool

    @property
    def name(self) -> str:
        """Its kind of passes."""
        return f"{self.passes}, overlap schedule" if self.overlap_schedule else self.passes


@dataclass(frozen=True)
class Request:
    """A prompt and its answer.

    Attributes:
        output: tokens of the answer; the scheduler is told only where `known`, and `cap` elsewhere.
        turn: of the scheduler's loop, in which it arrives.
    """

    prompt: list[int]
    output: int
    cap: int
    known: bool
    turn: int


@dataclass
class Outcome:
    """What became of a pool.

    Attributes:
        ended: finish reason and output tokens by request.
        hung: it did not end.
        crashed: the scheduler raised an error, such as SGLang's own where memory runs out.
        leaked: KV tokens that are not free after it.
        retracted: times that a request lost its KV.
    """

    ended: dict[int, tuple[str, int]] = field(default_factory=dict)
    hung: bool = False
    crashed: bool = False
    leaked: int = 0
    retracted: int = 0

    @property
    def aborted(self) -> set[int]:
        """Requests that were not answered."""
        return {request for request, (reason, _) in self.ended.items() if reason == "abort"}

    def differs(self, other: Outcome) -> set[int]:
        """Requests that both answered, with different numbers of tokens."""
        answered = (self.ended.keys() & other.ended.keys()) - self.aborted - other.aborted
        return {request for request in answered if self.ended[request][1] != other.ended[request][1]}


ROOMY = 1_000
"""KV tokens from which a server gets streams rather than pools of a few requests."""


def random_server(rng: random.Random) -> Server:
    """Sizes of a server that holds a few short prompts, or one long one; or dozens of a stream."""
    hardware = rng.choice(["a100-80gb", "cpu"])
    if rng.random() < 0.1:
        sizes = rng.choice([4, 16, 64]), rng.choice([64, 256])
        capacity = rng.randrange(ROOMY, 4 * ROOMY) // 64 * 64
        passes = rng.choice(["alternating", "mixed"])
        return Server(hardware, capacity, *sizes, passes, rng.random() < 0.4)
    page = rng.choice([1, 1, 4, 16])
    capacity = rng.choice([rng.randrange(40, 120), rng.randrange(120, 600)])
    chunk = rng.choice([16, 32, 64])
    passes = rng.choice(["alternating", "mixed", "mixed"])
    return Server(hardware, max(capacity // page, 5) * page, page, chunk, passes, rng.random() < 0.4)


def random_stream(rng: random.Random, server: Server) -> list[Request]:
    """Requests that keep coming: three prefixes, a few prompts longer than a chunk, answers of some sizes."""
    prefixes = [[rng.randrange(3, 400) for _ in range(rng.randrange(40, 110))] for _ in range(3)]
    late = rng.choice([1, 5, 30, 60])
    stream = []
    for _ in range(60):
        length = rng.randrange(150, 450) if rng.random() < 0.15 else rng.randrange(3, 30)
        prompt = rng.choice(prefixes) + [rng.randrange(3, 400) for _ in range(length)]
        output = rng.choice([20, 20, 20, 8, 40])
        stream.append(Request(prompt, output, output, rng.random() < 0.5, rng.randrange(late)))
    return sorted(stream, key=lambda request: request.turn)


def random_pool(rng: random.Random, server: Server) -> list[Request]:
    """Requests for a server: long prompts among short ones, some sharing a prefix.

    In some pools most answers are short and few are long, and hardly any length is known: what those that
    have ended tell of the others is wrong.
    """
    pool: list[Request] = []
    late, deceptive = rng.choice([0, 0, 20]), rng.random() < 0.4
    for _ in range(rng.randrange(3, 12 if server.capacity < 120 else 24)):
        long_prompt = rng.random() < 0.4
        length = rng.randrange(1, 12)
        if long_prompt:
            # SGLang itself never admits a prompt of nearly all pages.
            length = rng.randrange(server.capacity // 2, server.capacity - 2 * server.page)
        output = rng.choice([1, 2, 4, 20]) if long_prompt else rng.randrange(1, 40)
        if deceptive and rng.random() < 0.8:
            output = rng.randrange(1, 4)
        if rng.random() < 0.02:
            length += server.capacity  # to be refused
        longest = max(server.capacity - server.page - length - 2, 1)
        output, known = min(output, longest), rng.random() < (0.1 if deceptive else 0.6)
        cap = output if known else max(min(output + rng.choice([0, 5, 200]), longest), output)
        prompt = [rng.randrange(3, 400) for _ in range(length)]
        if pool and rng.random() < 0.3:
            other = rng.choice(pool).prompt
            shared = rng.randrange(1, min(length, len(other)) + 1)
            prompt[:shared] = other[:shared]
        pool.append(Request(prompt, output, cap, known, rng.randrange(late + 1)))
    return sorted(pool, key=lambda request: request.turn)


def serve(server: Server, policy: str, pools: Sequence[Sequence[Request]]) -> Iterator[Outcome]:
    """Run pools one after the other under a policy; ends early behind one that does not end well."""
    from sglang.srt.hardware_backend.simulated_gpu.hooks import device_of
    from sglang.srt.hardware_backend.simulated_gpu.simulated_scheduler import queue_kept, simulated_scheduler

    ended: dict[str, tuple[str, int]] = {}
    building = simulated_scheduler(
        MODEL,
        hardware=server.hardware,
        engine=server.passes,
        on_finish=lambda rid, reason, tokens: ended.update({rid: (reason, tokens)}),
        schedule_policy=policy,
        enable_mixed_chunk=server.passes == "mixed",
        disable_overlap_schedule=not server.overlap_schedule,
        max_total_tokens=server.capacity,
        page_size=server.page,
        chunked_prefill_size=server.chunk,
        max_running_requests=64,
        context_length=2048,
        **({"blend_hardware": server.hardware} if policy == "blend" else {}),
    )
    with building as scheduler, queue_kept():  # flushing collects garbage
        device = device_of(scheduler.tp_worker)
        for number, pool in enumerate(pools):
            ended.clear()
            retracted = device.retractions
            outcome = Outcome()
            try:
                outcome.hung = not _answer(scheduler, number, pool)
            except RuntimeError:
                outcome.crashed = True
            outcome.ended = {int(rid.split("-")[1]): end for rid, end in ended.items()}
            over = outcome.hung or outcome.crashed
            if not over and scheduler.flush_cache():
                free = scheduler.token_to_kv_pool_allocator.available_size()
                outcome.leaked = scheduler.max_total_num_tokens - int(free)
            outcome.retracted = device.retractions - retracted
            yield outcome
            if over:
                return


def _answer(scheduler: Scheduler, number: int, pool: Sequence[Request]) -> bool:
    """Submit a pool's requests as they arrive, and step until all have ended; False if they do not."""
    from sglang.srt.hardware_backend.simulated_gpu import lone_scheduler
    from sglang.srt.hardware_backend.simulated_gpu.hooks import device_of

    names = [f"{number}-{i}" for i in range(len(pool))]
    device_of(scheduler.tp_worker).lengths = {
        name: request.output for name, request in zip(names, pool, strict=True) if not request.known
    }
    come = 0
    for turn in range(TURNS):
        while come < len(pool) and pool[come].turn <= turn:
            lone_scheduler.submit(
                scheduler,
                names[come],
                pool[come].prompt,
                max_new_tokens=pool[come].cap,
                sampling={"ignore_eos": pool[come].known},
            )
            come += 1
        batch = lone_scheduler.step(scheduler)
        if batch is None and come == len(pool) and scheduler.is_fully_idle():
            return True
    return False


def outcomes(server: Server, policy: str, pools: Sequence[Sequence[Request]]) -> list[Outcome]:
    """Run pools under a policy; after one that does not end well, the rest on a server of its own."""
    done: list[Outcome] = []
    while len(done) < len(pools):
        done += serve(server, policy, pools[len(done) :])
    return done


def compare(fcfs: Outcome, blend: Outcome) -> dict[str, list[int]]:
    """What blend did wrong with a pool, by kind: requests, or tokens that leaked; nothing if all is well.

    A prompt within a page or two of the KV's size is never admitted by SGLang, and under fcfs nobody passes
    it: what does not end there is not held against blend, nor what was not answered yet where fcfs crashed.
    """
    answered = fcfs.ended.keys() - fcfs.aborted
    unanswered = fcfs.ended.keys() - blend.ended.keys()
    found = {
        "aborted": blend.aborted & answered,
        "other lengths": blend.differs(fcfs),
        ("crashed" if blend.crashed else "hung" if blend.hung else "lost"): unanswered,
        "leaked": {blend.leaked} - {0},
    }
    return {kind: sorted(values) for kind, values in found.items() if values or kind == "crashed"}


@dataclass
class Totals:
    """Sums over pools; see `Runs.row`."""

    sums: Counter[str] = field(default_factory=Counter)

    def add(self, pool: Sequence[Request], fcfs: Outcome, blend: Outcome) -> None:
        """Count one pool."""
        self.sums.update(
            {
                "pools": 1,
                "requests": len(pool),
                "aborted by fcfs": len(fcfs.aborted),
                "aborted by blend": len(blend.aborted),
                "by blend alone": len(blend.aborted & (fcfs.ended.keys() - fcfs.aborted)),
                "other lengths": len(blend.differs(fcfs)),
                "hung under fcfs": fcfs.hung,
                "hung under blend": blend.hung,
                "crashed under fcfs": fcfs.crashed,
                "crashed under blend": blend.crashed,
                "tokens leaked under blend": blend.leaked,
                "retracted by fcfs": fcfs.retracted,
                "retracted by blend": blend.retracted,
            }
        )


class Runs:
    """Pools of seeded servers, and what they gave so far.

    Attributes:
        totals: by kind of passes.
        failures: what blend did wrong, with the server's number and the pool's number there.
    """

    def __init__(self, seed: int, pools_of_a_server: int) -> None:
        self.seed, self.pools_of_a_server = seed, pools_of_a_server
        self.totals: defaultdict[str, Totals] = defaultdict(Totals)
        self.failures: list[dict[str, Any]] = []

    def drawn(self, number: int) -> tuple[Server, list[list[Request]]]:
        """A server and its pools, by its number."""
        rng = random.Random(f"{self.seed} {number}")
        server = random_server(rng)
        draw = random_pool if server.capacity < ROOMY else random_stream
        return server, [draw(rng, server) for _ in range(self.pools_of_a_server)]

    def run(self, number: int) -> int:
        """Run one server's pools under both policies; how many pools."""
        server, pools = self.drawn(number)
        both = [outcomes(server, policy, pools) for policy in ("fcfs", "blend")]
        for i, (pool, fcfs, blend) in enumerate(zip(pools, *both, strict=True)):
            self.totals[server.name].add(pool, fcfs, blend)
            if wrong := compare(fcfs, blend):
                self.failures.append({"server": number, **asdict(server), "pool": i, **wrong})
        return len(pools)

    def result(self) -> dict[str, Any]:
        """Totals by kind of passes and of all, and the failures."""
        every: Counter[str] = Counter()
        for totals in self.totals.values():
            every.update(totals.sums)
        table = {name: dict(totals.sums) for name, totals in sorted(self.totals.items())}
        return {"all": dict(every), "by passes": table, "failures": self.failures}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.tight_pools",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pools", type=at_least_one, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pools-of-a-server", type=at_least_one, default=25, metavar="N")
    parser.add_argument("--server", type=int, metavar="N", help="run the pools of this server alone")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no server after so many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write totals and failures")
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)  # each server's start, and what is refused
    runs = Runs(arguments.seed, arguments.pools_of_a_server)
    begin = time.monotonic()
    code = provenance.commit()
    with tqdm(total=arguments.pools, unit="pool", mininterval=5) as bar:
        for number in itertools.count() if arguments.server is None else [arguments.server]:
            if bar.n >= arguments.pools or time.monotonic() - begin > 60 * arguments.minutes:
                break
            bar.update(runs.run(number))
            bar.set_postfix(failures=len(runs.failures))
    result = runs.result()
    for name, count in result["all"].items():
        print(f"{name:<28}{count:>8}")
    for failure in runs.failures:
        print(json.dumps(failure))
    if arguments.json is not None:
        command = f"python -m benchmark.tight_pools {' '.join(sys.argv[1:])}"
        written = {"command": command, "commit": code, "seed": arguments.seed, **result}
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    return 1 if runs.failures else 0


if __name__ == "__main__":
    sys.exit(main())

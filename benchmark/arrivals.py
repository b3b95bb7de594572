"""Requests that come while the pool runs: what does it cost blend that it did not know all at once?

    export SGLANG_PLATFORM=simulated_gpu
    python -m benchmark.arrivals --json build/arrivals.json

Chats and questions about documents, lengths unknown, run through SGLang's scheduler under blend on a
simulated A100-80GB (Llama-3-8B). They are there at once, come one by one (Poisson), or in bursts; the last
ones come after `--spread` of the time that the first run took. Then the same with an online user beside
them, whose short requests of urgent priority come one by one. Seconds are modelled. Printed are the
throughput as a share of the run that knew all, the prompt tokens that were computed (a document is computed
again if it has left the cache when its next reader comes), the steps until the user's requests begin, and
the longest wait of the others: in seconds, and in requests that began meanwhile. Exit code 1 if a run
without the user has less than 95%.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from benchmark import provenance
from benchmark.paper.arguments import at_least_one
from benchmark.paper.models import MODELS
from benchmark.workloads.lengths import LengthDistribution as Lengths
from benchmark.workloads.traces import TraceSpec, make_trace
from numpy.typing import NDArray

from sglang.srt.blend.core.pool.workload import Workload, concatenate

if TYPE_CHECKING:
    from sglang.srt.hardware_backend.simulated_gpu.device import SimulatedDevice
    from sglang.srt.managers.scheduler import Scheduler

Floats = NDArray[np.float64]

KINDS = ("at once", "poisson", "bursts")
ENGINES = ("alternating", "mixed", "overlapped")
HARDWARE, CHUNK, KV_TOKENS = "a100-80gb", 1024, 32_768
BURSTS, BAR = 8, 0.95

SPECS = {
    "chats": TraceSpec(Lengths(120, 100, 8, 1024), Lengths(150, 120, 4, 512), 5, max_new_tokens=512),
    "documents": TraceSpec(
        Lengths(2000, 600, 1300, 4096), Lengths(20, 15, 1, 100), 1200, max_new_tokens=128, groups=25
    ),
    "online": TraceSpec(Lengths(200, 100, 20, 512), Lengths(40, 20, 4, 100), 5, max_new_tokens=100),
}
"""Half of the batch are chats; a document has 1,200 tokens and readers all over the batch."""


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one run.

    Attributes:
        kind: of arrivals; online: the user's requests beside the batch.
        seconds: modelled, until all are answered.
        throughput: tokens/s, shared ones and the user's included.
        share: of the throughput of the run without the user that knew all at once.
        computed: prompt tokens that were not in the cache, the user's included.
        online_steps: median and most steps from the user's sending until the first that computes the request
            (1: the next one).
        longest_wait: modelled seconds until a request of the batch began; admissions: the most requests that
            began while one of the batch waited; queued: the most that waited at once.
    """

    engine: str
    kind: str
    online: int
    seconds: float
    throughput: float
    share: float
    computed: int
    online_steps: tuple[float, int] | None
    longest_wait: float
    admissions: int
    queued: int
    retractions: int


def batch(requests: int, seed: int) -> Workload:
    """Chats and questions about documents, shuffled; nobody knows how long answers are."""
    parts = [make_trace(name, requests // 2, seed=seed, specs=SPECS) for name in ("chats", "documents")]
    mixed = concatenate(parts)
    return mixed.take(np.random.default_rng(seed).permutation(len(mixed)))


def arrivals(kind: str, requests: int, seconds: float, seed: int) -> Floats:
    """(requests,) sorted seconds at which requests come, between 0 and `seconds`."""
    if kind == "at once":
        return np.zeros(requests)
    if kind == "bursts":
        return np.linspace(0.0, seconds, BURSTS)[np.arange(requests) * BURSTS // requests]
    # Given their number, the times of a Poisson process are uniform.
    return np.sort(np.random.default_rng(seed).uniform(0.0, seconds, requests))


class Stream:
    """A batch and an online user's requests on one scheduler, each sent when its time has come.

    Attributes:
        sent, began: by request, (steps, admissions, second) when it was queued, and when first computed.
        queued: the most that waited at once.
    """

    def __init__(self, requests: Workload, seconds: Floats, batch: int) -> None:
        """The first `batch` requests are the batch's; `seconds` (n,) says when each comes."""
        self.requests, self.seconds, self.batch = requests, seconds, batch
        self.sent: dict[str, tuple[int, int, float]] = {}
        self.began: dict[str, tuple[int, int, float]] = {}
        self.queued = 0

    def run(self, scheduler: Scheduler, device: SimulatedDevice) -> None:
        """Step until all have come and ended."""
        from sglang.srt.hardware_backend.simulated_gpu import lone_scheduler

        device.lengths = {f"r{i}": int(length) for i, length in enumerate(self.requests.output)}
        order, come, steps = np.argsort(self.seconds, kind="stable").tolist(), 0, 0
        while True:
            while come < len(order) and self.seconds[order[come]] <= device.clock:
                self._send(scheduler, order[come], (steps, len(self.began), device.clock))
                come += 1
            self.queued = max(self.queued, len(scheduler.waiting_queue))
            now = device.clock
            launched = lone_scheduler.step(scheduler)
            if launched is not None:
                steps += 1
                new = [req.rid for req in launched.reqs if req.rid not in self.began]
                self.began |= dict.fromkeys(new, (steps, len(self.began), now))
            elif scheduler.is_fully_idle():
                if come == len(order):
                    return
                device.clock = max(device.clock, self.seconds[order[come]])

    def _send(self, scheduler: Scheduler, request: int, now: tuple[int, int, float]) -> None:
        from sglang.srt.blend.runtime.priorities import URGENT
        from sglang.srt.hardware_backend.simulated_gpu import lone_scheduler

        self.sent[f"r{request}"] = now
        lone_scheduler.submit(
            scheduler,
            f"r{request}",
            self.requests.prompt_tokens(request),
            max_new_tokens=int(self.requests.max_new_tokens[request]),
            priority=URGENT if request >= self.batch else None,
        )

    def waits(self, online: bool) -> NDArray[np.float64]:
        """(m, 3) steps, admissions and seconds that each request waited, of the user's or of the batch."""
        chosen = range(self.batch, len(self.requests)) if online else range(self.batch)
        pairs = [(self.began[f"r{i}"], self.sent[f"r{i}"]) for i in chosen]
        return np.array([np.subtract(began, sent) for began, sent in pairs], np.float64).reshape(-1, 3)


def run(engine: str, kind: str, pool: Workload, online: int, spread: float, seed: int) -> Row:
    """One run, in this process; `spread` is the second of the last arrivals. Its `share` is 1."""
    from sglang.srt.hardware_backend.simulated_gpu.hooks import device_of
    from sglang.srt.hardware_backend.simulated_gpu.simulated_scheduler import queue_kept, simulated_scheduler

    seconds = arrivals(kind, len(pool), spread, seed)
    requests = pool
    if online:
        requests = concatenate([pool, make_trace("online", online, seed=seed, specs=SPECS)])
        seconds = np.concatenate([seconds, arrivals("poisson", online, spread, seed + 1)])
    stream, ended = Stream(requests, seconds, len(pool)), {}
    with simulated_scheduler(
        MODELS["llama-3-8b"].config,
        hardware=HARDWARE,
        engine=engine,
        on_finish=lambda rid, reason, tokens: ended.update({rid: (reason, tokens)}),
        schedule_policy="blend",
        blend_hardware=HARDWARE,
        blend_engine=engine,
        max_total_tokens=KV_TOKENS,
        chunked_prefill_size=CHUNK,
        context_length=8192,
        random_seed=seed,
        **({"enable_priority_scheduling": True, "default_priority_value": 0} if online else {}),
    ) as scheduler:
        device = device_of(scheduler.tp_worker)
        with queue_kept():
            stream.run(scheduler, device)
    wrong = [i for i, n in enumerate(requests.output) if ended.get(f"r{i}", ("", 0))[1] != n]
    if wrong:
        raise RuntimeError(f"{len(wrong)} requests were not answered in full, the first is r{wrong[0]}")
    waits, user = stream.waits(online=False), stream.waits(online=True)[:, 0]
    return Row(
        engine=engine,
        kind=kind,
        online=online,
        seconds=round(device.clock, 3),
        throughput=round(requests.total_tokens / device.clock, 1),
        share=1.0,
        computed=int(device.steps["prefill_tokens"].sum()),
        online_steps=(median(user.tolist()), int(user.max())) if online else None,
        longest_wait=round(float(waits[:, 2].max()), 3),
        admissions=int(waits[:, 1].max()),
        queued=stream.queued,
        retractions=device.retractions,
    )


def table(engine: str, requests: int, online: int, spread: float, seed: int) -> Iterator[Row]:
    """The runs of an engine: the one that knows all, other arrivals, and each kind with the user."""
    pool = batch(requests, seed)
    whole = run(engine, KINDS[0], pool, 0, 0.0, seed)
    yield whole
    for user, kinds in ((0, KINDS[1:]), (online, KINDS)):
        for kind in kinds:
            row = run(engine, kind, pool, user, spread * whole.seconds, seed)
            row = Row(**asdict(row) | {"share": round(row.throughput / whole.throughput, 4)})
            yield row


def report(rows: Sequence[Row]) -> Iterator[str]:
    """A heading, and a line for each run."""
    yield (
        f"{'engine':<12}{'arrivals':<18}{'seconds':>9}{'share':>8}{'computed':>10}{'user: steps':>14}"
        f"{'longest wait':>14}{'began meanwhile':>17}{'most queued':>13}{'retracted':>11}"
    )
    for row in rows:
        user = "{:.0f}, most {}".format(*row.online_steps) if row.online_steps else "-"
        yield (
            f"{row.engine:<12}{row.kind + (' + user' if row.online else ''):<18}{row.seconds:>9.2f}"
            f"{row.share:>8.1%}{row.computed:>10}{user:>14}"
            f"{row.longest_wait:>12.2f} s{row.admissions:>17}{row.queued:>13}{row.retractions:>11}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.arrivals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=at_least_one, default=1000, help="of the batch")
    parser.add_argument("--online", type=at_least_one, default=100, help="requests of the user")
    parser.add_argument("--spread", type=float, default=0.6, help="when the last come, see above")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="may be repeated; default is all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run")
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)  # each scheduler's start
    code = provenance.commit()
    rows: list[Row] = []
    for engine in arguments.engine or ENGINES:
        rows += table(engine, arguments.requests, arguments.online, arguments.spread, arguments.seed)
    print("\n".join(report(rows)))
    if arguments.json is not None:
        command = shlex.join(["python", "-m", "benchmark.arrivals", *sys.argv[1:]])
        written = {"command": command, "commit": code, "seed": arguments.seed}
        runs = [asdict(row) for row in rows]
        arguments.json.write_text(json.dumps(written | {"runs": runs}, indent=1) + "\n")
    return 1 if any(row.share < BAR and not row.online for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

"""How wrong the forecasts of `sglang-batch serve` are: a service whose batches come one after another.

    python -m benchmark.forecast_error --json benchmark/results/forecast_error.json

Batches of two keys run through the service's own room and shared engine, over SGLang's scheduler under blend
on a simulated GPU. Each is foretold when it comes, and a quarter, half and three quarters into its life. What
is foretold when it comes knows its lines and prompts, and lengths of answers where a batch of its kind has
ended; it does not know what will come later, which is part of the error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmark import provenance
from benchmark.paper.arguments import add_jobs
from benchmark.service_windows import Batch, lines_of, simulate_service
from tqdm import tqdm

from sglang.batch.plan.schedules import simulator_processes
from sglang.batch.serve.admission import forecast_ends
from sglang.batch.serve.pace import OUTPUT_WEIGHT, Costs
from sglang.batch.serve.room import Room, Seat
from sglang.srt.blend.core.pool.output_length import prior_tokens

FRACTIONS = (0.0, 0.25, 0.5, 0.75)
"""Of a batch's life, at which it is foretold."""

DAY = 86_400.0

EVERY = 1.0
"""Simulated seconds between two forecasts."""


@dataclass(frozen=True)
class Arrival:
    """A batch that comes.

    Attributes:
        lines: of a trace.
        after: part of the lines of all batches that are done by then.
        window: seconds.
    """

    trace: str
    lines: int
    after: float
    key: str = "a"
    window: float = DAY


ARRIVALS = (
    Arrival("chats", 2000, 0.0),
    Arrival("documents", 100, 0.02),
    Arrival("chats", 800, 0.04, "b", 60.0),
    Arrival("labels", 500, 0.06),
    Arrival("documents", 60, 0.08, "b", 60.0),
    Arrival("chats", 1000, 0.1),
    Arrival("chats", 100, 0.3, "b"),
)


@dataclass(frozen=True)
class Error:
    """How wrong a forecast was.

    Attributes:
        left: seconds that were left.
        relative: (foretold - real) / left.
        others_came: whether another batch came between forecast and end.
    """

    name: str
    fraction: float
    left: float
    relative: float
    others_came: bool


class Foreteller:
    """Expects what the service would, and foretells every second."""

    def __init__(self, traces: dict[str, str], answered: dict[str, tuple[float, float]]) -> None:
        self.told: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._traces = traces
        self._answers = answered
        self._ended: set[str] = set()
        self._last = -EVERY
        self._seen: set[str] = set()

    def costs(self, batch: Batch) -> Costs:
        """What a line is expected to cost: its prompt, and an answer as long as those of its kind were."""
        prompt, output = self._answers[batch.name]
        if self._traces[batch.name] not in self._ended:
            output = float(prior_tokens(batch.workload.max_new_tokens).mean())
        return Costs(prompt + OUTPUT_WEIGHT * output)

    def look(self, second: float, seats: dict[str, Seat], room: Room) -> None:
        for name in self._seen - set(seats):
            self._ended.add(self._traces[name])
        if second < self._last + EVERY and set(seats) <= self._seen:
            return
        self._last, self._seen = second, self._seen | set(seats)
        if room.pace.per_second is None:
            return
        works = room.works()
        ends = dict(zip(works, forecast_ends(list(works.values()), second, sure=room.pace.sure), strict=True))
        for name, seat in seats.items():
            self.told[name].append((second, ends[seat]))


def simulate_one(seed: int, scale: float) -> list[Error]:
    """Run one service in this process, and compare what was foretold with what came."""
    lines = sum(int(one.lines * scale) for one in ARRIVALS)
    batches = [
        Batch(
            f"{number} {one.trace}",
            lines_of(one.trace, int(one.lines * scale), seed=seed + number),
            int(one.after * lines),
            one.window,
            one.key,
        )
        for number, one in enumerate(ARRIVALS)
    ]
    means = {
        batch.name: (float(batch.workload.prompt.mean()), float(batch.workload.output.mean()))
        for batch in batches
    }
    traces = {batch.name: batch.name.split()[1] for batch in batches}
    foreteller = Foreteller(traces, means)
    outcome = simulate_service(batches, costs=foreteller.costs, look=foreteller.look)
    return [
        error
        for batch in batches
        for error in _errors(
            batch.name,
            foreteller.told[batch.name],
            outcome.begins[batch.name],
            outcome.ends[batch.name],
            list(outcome.begins.values()),
        )
    ]


def _errors(
    name: str, told: Sequence[tuple[float, float]], begin: float, end: float, begins: Sequence[float]
) -> list[Error]:
    found = []
    for fraction in FRACTIONS:
        wanted = begin + fraction * (end - begin)
        at = next(((second, foretold) for second, foretold in told if second >= wanted), None)
        # Before anything was measured there is no forecast.
        if at is not None and at[0] <= wanted + 2 * EVERY and end > at[0]:
            came = any(at[0] < other < end for other in begins)
            left = end - at[0]
            found.append(Error(name, fraction, round(left, 1), round((at[1] - end) / left, 4), came))
    return found


def table(found: Sequence[Error]) -> list[dict[str, Any]]:
    """Sum up, with and without those that others came after."""
    rows = []
    for fraction in FRACTIONS:
        for others in (False, True):
            some = [
                abs(one.relative)
                for one in found
                if one.fraction == fraction and (others or not one.others_came)
            ]
            if some:
                rows.append(
                    {
                        "fraction": fraction,
                        "others_came": others,
                        "forecasts": len(some),
                        "median": round(median(some), 4),
                        "largest": max(some),
                    }
                )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.forecast_error",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_jobs(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 100, 200])
    parser.add_argument("--scale", type=float, default=1.0, help="lines, in times of those of the batches")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every error and the table")
    arguments = parser.parse_args()
    with simulator_processes(arguments.jobs) as executor:
        futures = [executor.submit(simulate_one, seed, arguments.scale) for seed in arguments.seeds]
        found = [error for future in tqdm(futures, unit="service") for error in future.result()]
    for one in found:
        print(
            f"{one.name:<14}{one.fraction:>5.0%}  {one.left:>7.1f} s left {one.relative:>+8.1%}"
            f"{'  (others came)' if one.others_came else ''}"
        )
    rows = table(found)
    for row in rows:
        print(
            f"{row['fraction']:>5.0%} of its life, {'all' if row['others_came'] else 'nothing came later'}:"
            f" median {row['median']:.1%}, largest {row['largest']:.1%} of {row['forecasts']}"
        )
    if arguments.json is not None:
        written = {
            "command": f"python -m benchmark.forecast_error {' '.join(sys.argv[1:])}",
            "commit": provenance.commit(),
            "seeds": arguments.seeds,
            "scale": arguments.scale,
            "table": rows,
            "errors": [asdict(error) for error in found],
        }
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Whether two commits make the same schedule, to the last bit: step logs written at each, and compared.

    git switch --detach BEFORE && python -m benchmark.step_logs write --out build/before
    git switch --detach AFTER  && python -m benchmark.step_logs write --out build/after
    python -m benchmark.step_logs compare build/before build/after

A folder holds one file per schedule: every scenario of `test/simulated_gpu/scenarios.py` (JSON: what each
step held and cost, who was admitted in which order) and every simulation of `make paper-quick` (a NumPy array
with one row per forward pass and the columns of `StepLog`, then one with the second at which each request
ended). Wall times are left out; nothing else may differ. Exit code 1 if anything does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np
from benchmark import provenance
from benchmark.paper.arguments import add_jobs
from benchmark.paper.compare import Run, batches, simulated
from benchmark.paper.tables import quick
from tqdm import tqdm

from sglang.batch.plan.schedules import simulator_processes

SCENARIOS = Path(__file__).parents[1] / "test" / "simulated_gpu" / "scenarios.py"
PLATFORM = {"simulated": "simulated_gpu", "real": "portable_cpu"}
"""Sets of scenarios and the platform that each runs on."""

WALL_TIMES = ("python_seconds",)
COMMIT = "commit.txt"


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.command == "compare":
        return compare(arguments.before, arguments.after)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / COMMIT).write_text(provenance.commit() + "\n")
    for name in PLATFORM:
        write_scenarios(name, arguments.out)
    if not arguments.scenarios_only:
        write_quick(arguments.jobs, arguments.out)
    return 0


def write_scenarios(name: str, out: Path) -> None:
    """One file per scenario of a set."""
    done = subprocess.run(
        [sys.executable, str(SCENARIOS), name],
        env=os.environ | {"SGLANG_PLATFORM": PLATFORM[name]},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for scenario, log in json.loads(done.stdout.splitlines()[-1]).items():
        if isinstance(log, dict):
            log = {key: value for key, value in log.items() if key not in WALL_TIMES}
        (out / f"scenario-{name}-{scenario}.json").write_text(json.dumps(log, sort_keys=True) + "\n")


def write_quick(jobs: int, out: Path) -> None:
    """One file per simulation of `make paper-quick`."""
    with simulator_processes(jobs) as executor:
        futures = [executor.submit(simulate, group[0]) for group in batches(quick())]
        for future in tqdm(as_completed(futures), total=len(futures), unit="simulation"):
            run, steps, finished = future.result()
            with (out / f"quick-trace{run.trace}-{run.policy}-{run.engine}.npy").open("wb") as file:
                np.save(file, steps)
                np.save(file, finished)


def simulate(run: Run) -> tuple[Run, np.ndarray, np.ndarray]:
    """In a process of the simulator: step log (steps, columns) and ends (requests,), seconds."""
    from sglang.srt.hardware_backend.simulated_gpu.step_log import COLUMNS

    _, result = simulated(run)
    return run, np.stack([result.steps[name] for name in COLUMNS], axis=1), result.finished


def compare(before: Path, after: Path) -> int:
    """Print what differs; 1 if anything does."""
    commits = [(folder / COMMIT).read_text().strip() for folder in (before, after)]
    names = sorted({file.name for folder in (before, after) for file in folder.iterdir()} - {COMMIT})
    different = [name for name in names if not _equal(before / name, after / name)]
    for name in different:
        print(f"differs: {name}")
    same = len(names) - len(different)
    print(f"{commits[0]} and {commits[1]}: {same} of {len(names)} step logs are identical")
    return 1 if different or not names else 0


def _equal(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.read_bytes() == other.read_bytes()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.step_logs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="simulate, and write what every step did")
    write.add_argument("--out", type=Path, required=True, help="folder")
    write.add_argument("--scenarios-only", action="store_true", help="leave out paper-quick (minutes)")
    add_jobs(write)
    both = commands.add_parser("compare", help="two folders that `write` made")
    both.add_argument("before", type=Path)
    both.add_argument("after", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())

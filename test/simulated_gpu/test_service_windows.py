"""A small case of `benchmark.service_windows`, so that windows are kept and the benchmark cannot rot."""

import json
from pathlib import Path

from benchmarks import run_benchmark


def test_the_later_batch_with_the_nearer_deadline_ends_in_time_and_the_whole_takes_no_longer(
    tmp_path: Path,
) -> None:
    report = tmp_path / "report.json"
    case = ["--scale", "0.3", "--cases", "0", "--jobs", "1", "--json", str(report)]
    done = run_benchmark("service_windows", *case, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    (row,) = json.loads(report.read_text())["rows"]
    assert row["without"] > row["deadline"], "it would have been in time anyway"
    assert row["with_deadline"] <= row["deadline"]
    assert row["total_with"] <= 1.03 * row["total_without"]
